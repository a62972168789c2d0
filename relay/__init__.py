"""Relay, a self-hosted webhook gateway: receives, proves, commits, then delivers to every target.

The map. Imports point down only, siblings on a floor do not import each other, and `app` alone wires.

| floor | where | its one sentence |
| --: | --- | --- |
| 7 | `cli/` | Turns argv into a call; one module a family of verbs. |
| 7 | `bench/` | Measures a real relay on this machine, from outside. |
| 6 | `process` | Runs the app as a process: its log, its signals, its exit code. |
| 6 | `app` | Builds every object once, starts it, takes it down in order. |
| 6 | `api` | Puts the admin API's calls together over the parts that run. |
| 6 | `watching` | Has the config reloaded when its files hold another content. |
| 6 | `reloading` | Takes up another config while everything runs, whole or not at all. |
| 6 | `outbound` | All by which requests leave: senders, tokens and enrichers, made from one config. |
| 6 | `standing` | Tells how the relay stands: ready or not, its gauges, its status. |
| 5 | `ingress` | Receives a webhook: read, verify, route, accept, answer. |
| 5 | `refusals` | Keeps the requests that were turned away, for who asks why. |
| 5 | `notices` | Tells people what happens to the relay itself, as events of the source `relay`. |
| 5 | `upkeep` | Keeps the store within its bounds, by age and by size. |
| 5 | `timekeeping` | Sees that the clock was set, and has what waits by it judged anew. |
| 5 | `admin/` | Shows and steers: health, metrics, the API. |
| 5 | `config/` | Reads the YAML into frozen, fully checked values; every refusal names its place. |
| 5 | `telemetry/` | Logs and metrics: set-up, redaction, the bounded writer, who is told what. |
| 4 | `intake` | Judges a request's head and reads its body, within our limits. |
| 4 | `desks` | What the ingress knows of each source, and remembers between its requests. |
| 4 | `skew` | Says when a source's requests fail for their time alone. |
| 4 | `listener` | A listening socket with our limits around aiohttp's server. |
| 4 | `connections` | One caller's connection, within its bounds. |
| 4 | `accepting` | Takes connections in, no more than there is room for. |
| 4 | `delivery/` dispatcher, lane, carrying | Claims due deliveries and carries each through send, decide and settle. |
| 4 | `delivery/replayer` | Carries the stored replays at their rates. |
| 3 | `delivery/limits` | Owns the rates that targets and their groups share, and the queue for each. |
| 3 | `delivery/` preparing, enrichment | Fetches what an event lacks, once for all; decides what was left open. |
| 3 | `delivery/observing` | Who is told of attempts, and what. |
| 3 | `delivery/` sender, posting, wire, deadlines | Parts of an attempt; none raises for what a target did. |
| 3 | `delivery/` pool, hearing, answers, plain | Connections to a target: kept between requests, heard within bounds. |
| 3 | `delivery/` sessions, egress, faults | The one way out: who may be dialled, and what kept us from an answer. |
| 3 | `delivery/` credentials, tokens | Prove us to whom a request goes, as the last thing before it is sent. |
| 3 | `store/` | The storage port: the verbs, what each guarantees, its errors. |
| 3 | `store/grouping/` | Group commit: queues, batches and the writing loop that every store has. |
| 3 | `store/sqlite/` | The verbs in SQL, for one process and one file. |
| 3 | `store/postgres/` | The verbs in SQL, for any number of nodes; the only other SQL in the package. |
| 3 | `store/` opening, locations, moving | Which store a URL names; all of one moved into the other. |
| 3 | `ids` | Fresh ids that sort by time. |
| 3 | `loops` | Which event loop a process of ours runs on. |
| 2 | `rules/` | Pure decisions. No clock, no chance, no I/O: `now` and `rng` are arguments. |
| 2 | `providers/` | One file a provider, as data: its check, event type, dedupe key, sample and test vector. |
| 1 | `model/` | The nouns, frozen, and the two transition tables. |

One webhook, in order: `ingress` reads and verifies it, names the event, asks `rules.routing` where it goes and hands it
to `store.accept`; after the commit it answers. What a `delivery.lane` has bid for comes to it by the same commit, and
it claims all else when that is due; it has `delivery.preparing` fetch what it lacks and `rules.shaping` make the
request, sends it through `delivery.sender`, and has `rules.retry` and `rules.health` decide inside the transaction that
settles it.
"""

__version__ = "0.1.0"
