"""The table of faults: what is thrown at the relay, by the names that tests carry as `@pytest.mark.row(...)`.

T are threats, F faults, C bad configs, H bad requests, B bugs that other gateways had. A house test holds that each row
has a test, or a reason in `LEFT_OUT`. `python -m tests.support.rows` prints the table of the README's chapter on
security, which is made from this and from the markers; `pytest --row F2` runs what meets a row.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

THEMES: Mapping[str, Mapping[str, str]] = {
    "Forged, cut, doubled, ambiguous and weak proofs": {
        "T1": "a forged event without a right proof",
        "T2": "a proof that is only the beginning of the right one",
        "T3": "an empty secret, an empty proof",
        "T4": "several proofs where one is meant, or too many",
        "T5": "a weaker algorithm than the config's",
        "T8": "a body that is changed before it is proven",
        "T9": "a scheme that is mistyped in the config",
        "T24": "large bodies without a proof, to keep the processor busy",
        "H4": "no proof at all",
        "H5": "a wrong digest, a wrong prefix, another case",
        "H6": "a digest that is cut, empty or doubled",
        "H7": "a digest in another spelling of base64",
        "H10": "a list of proofs of which one is right",
        "H11": "ten thousand proofs in one header",
        "H14": "a signed id that moves the border between what is signed",
        "H16": "the old secret during a rotation, and after it",
        "B12": "a short signature that matched by its beginning",
        "B15": "an unknown check that let everything in",
        "B20": "a digest over parsed instead of received bytes",
        "B21": "a malformed proof that ended in a crash",
    },
    "Replays, and clocks that disagree": {
        "T6": "a captured request that is sent again",
        "T7": "our own clock is wrong and turns everybody away",
        "H12": "timestamps that are no whole seconds of our age",
        "H13": "timestamps at and beyond the tolerance",
        "H15": "the same id again, with the same body and with another",
        "B11": "the same id from two sources",
    },
    "Addresses that are claimed": {
        "T10": "an allowed address claimed in a header",
        "T11": "an address in another form, or none",
        "H17": "a right proof from a wrong address, and the reverse",
        "H18": "a forwarded address from an untrusted peer",
        "H20": "the header Forwarded",
        "H21": "IPv4 seen through an IPv6 socket",
    },
    "Requests that are no HTTP, or two things at once": {
        "T13": "smuggling by lengths, chunks and line ends",
        "T14": "HTTP versions that are not spoken",
        "T15": "paths that are spelled otherwise",
        "T17": "an invitation to send the body before the head is judged",
        "T19": "huge heads, lines and numbers of headers",
        "T33": "paths that lead out of a directory",
        "H1": "other methods on a source's path",
        "H2": "paths that are no source's",
        "H3": "methods that do not exist",
        "H24": "lengths that are no length, or two",
        "H25": "a length and chunks, misspelled chunks",
        "H26": "a coding beside chunked",
        "H27": "no length and no chunks",
        "H31": "Expect with a bad key, a large body, another word",
        "H38": "absolute targets, other hosts, no host, two hosts",
        "H40": "HTTP/0.9, HTTP/2, TLS, SSH, noise",
        "H41": "HTTP/1.0 without a host",
        "H42": "long headers, many headers, long URLs",
        "H44": "chunk extensions, tiny chunks, trailers",
        "B63": "headers, endpoints and children of another relay that leaked",
    },
    "Bodies that are large, packed, odd or empty": {
        "T16": "a body beyond the limit, declared or not",
        "T18": "packed bodies that explode, or are not packed",
        "H22": "a body at the limit and one byte more",
        "H23": "a chunked body over the limit",
        "H28": "an empty body with a right proof",
        "H32": "a packed body that is signed as it is sent",
        "H34": "a small body that unpacks to a huge one",
        "H35": "bodies that are no JSON",
        "H37": "content types that are missing or broken",
        "B4": "a body that was written anew",
        "B13": "large numbers that changed on the way",
        "B30": "an oversized body with another answer than 413",
        "B32": "bytes that a text column could not hold",
        "B48": "JSON whose keys changed their order",
        "B61": "a binary body that became an empty object",
    },
    "Floods, slow senders and full tables": {
        "T20": "heads and bodies that drip",
        "T21": "more connections than there are descriptors",
        "T22": "pipelined requests whose answers nobody reads",
        "T23": "one source that starves the others",
        "F25": "ten times what can be borne",
        "F26": "hundreds of slow heads and slow bodies",
        "F27": "all descriptors taken",
        "F39": "bodies that keep the event loop busy",
        "H30": "a head, a body, a byte a second",
        "H45": "a thousand pipelined requests and a client that does not read",
        "H54": "a source over its rate",
        "B53": "a limit that was answered with 500",
        "B58": "overload that was answered with a lasting refusal",
    },
    "Senders that leave, and answers that come late": {
        "T34": "a sender that leaves during the commit",
        "F36": "a sender that leaves at each byte",
        "H46": "a sender that closes or resets after sending",
        "H55": "a store that is full, locked or slow",
        "H56": "requests while we stop",
    },
    "Logs and error texts": {
        "T12": "secrets in paths that reach a log",
        "T25": "line ends, escapes and fake fields in what is logged",
        "T26": "floods of lines by bad requests",
        "T27": "answers that repeat input or show a traceback",
        "H47": "header values made for terminals and parsers of logs",
        "H48": "headers named like fields of the log",
        "B42": "a warning every few seconds for ever",
    },
    "What goes on to targets": {
        "T50": "values that would break a header",
        "T51": "headers that belong to one hop",
        "T52": "addresses claimed towards a target",
        "T53": "a provider's signature that goes on",
        "T54": "cookies that wander between targets",
        "T55": "a relay that delivers to itself",
        "H50": "a count of hops that is too high, or no number",
        "H51": "forwarding headers that came in",
        "H52": "credentials that came in",
        "H53": "header values that are not ASCII",
    },
    "The admin listener": {
        "T28": "guessing which sources exist",
        "T29": "a browser that is made to call it",
        "T30": "what an event brings, shown as a page",
        "T31": "replays by those who may not",
        "T32": "health and metrics that tell too much",
        "H57": "no token, a wrong one, one in the wrong place",
        "H58": "foreign origins, hosts and content types",
        "H59": "ids made of paths, SQL and noise",
        "H60": "replays of what is dead, delivered, pending, unknown, held",
        "H61": "limits and cursors that are none",
        "H62": "readiness while something is wrong",
    },
    "Requests led to forbidden places": {
        "T40": "metadata services of clouds, in every spelling",
        "T41": "a name that leads elsewhere the second time",
        "T42": "a name with a good and a bad address",
        "T43": "odd spellings of addresses",
        "T44": "redirects to inner hosts",
        "T45": "proxy variables of the environment",
        "T46": "other ways out than the guarded one",
        "F21": "redirects to metadata, and to the target itself",
        "F23": "names that change between check and use",
        "B10": "a list of addresses with holes",
        "B16": "a default without a check when dialling",
        "B17": "a token URL that nobody checked",
        "B36": "a proxy's exceptions that were ignored",
        "B54": "IPv6 spellings of inner IPv4 addresses",
    },
    "TLS to targets and to us": {
        "T47": "certificates that are not checked",
        "T48": "keys that do not fit, or are readable to all",
        "B6": "a TLS context for every request",
    },
    "Targets that fail, hang, lie and explode": {
        "T49": "answers without an end, in drips, bombs and noise",
        "F13": "nobody listens",
        "F14": "nobody answers the connection",
        "F15": "heads and bodies that drip, interim answers without end",
        "F16": "a reset before, in and after the answer",
        "F19": "Retry-After of every kind",
        "F20": "answers that are bombs",
        "F22": "name servers that fail",
        "F24": "one hung target among ten",
        "B7": "Retry-After that was read on one path only",
        "B41": "failed connections that were never tried again",
        "B46": "an answer too long to be recorded, tried for ever",
        "B51": "a connection for every request",
        "B52": "a template's fault that nobody saw",
        "B62": "a connection that was quietly dead",
    },
    "When a target is slowed, disabled and taken back": {
        "T57": "a storm after an outage",
        "T58": "one bad event that disables a target",
        "F18": "a target that comes and goes",
        "F33": "one event that always fails",
        "B28": "shown and enforced state that differ",
        "B29": "a disabling that nobody is told of",
        "B39": "a disabling that needed another setting",
        "B40": "events of a disabled target that vanished",
        "B49": "a message for every event instead of every change",
        "B59": "a disabling during a delivery",
        "B67": "a recovery that no test covered",
        "B70": "a count that any success reset, or that nobody saw",
        "B71": "a disabling that a restart forgot",
        "B72": "a disabling without a line or a number",
        "B74": "one bad event that blocked all behind it",
    },
    "Retries, claims and records": {
        "B3": "two entries for one delivery",
        "B5": "a claim that ends before its request",
        "B14": "an empty schedule that was ignored",
        "B22": "attempts that were never counted",
        "B23": "a next attempt that stays in the past",
        "B24": "retries that a release broke",
        "B25": "deliveries that are claimed and forgotten",
        "B31": "waits in the wrong unit",
        "B38": "an event sent again because its record failed",
        "B47": "a replay that was taken for a duplicate",
        "B56": "told before it was committed, or sent within a transaction",
        "B57": "an attempt with two results",
        "B65": "a row without its place in a queue",
        "B66": "a task that was collected while it ran",
    },
    "Kills, power cuts and stops": {
        "F1": "killed under load, again and again",
        "F2": "the plug pulled at every write",
        "F29": "a process that was frozen",
        "F31": "a stop under load, twice, and with a stuck disk",
        "F38": "a start with a hundred thousand waiting",
        "B9": "a stop that waited for a broken store",
        "B68": "deliveries that a stop closed as failed",
        "B69": "a cancelled start that never ended",
        "B73": "a second Ctrl-C that was ignored",
    },
    "Disks and files": {
        "F3": "a sync that fails",
        "F4": "a write that fails",
        "F5": "a store at its quota",
        "F6": "a disk that is full",
        "F7": "a disk that is slow",
        "F8": "a file that is damaged, cut or replaced",
        "F11": "two processes on one file",
        "F12": "a log that grows beside a long reader",
        "B1": "a store that was back, and a program that was not",
        "B35": "a connection that was never made again",
        "B43": "a worker that died of a few seconds of errors",
        "B45": "a write that hung for an hour",
    },
    "Time, upgrades, bugs of ours, and hours of it": {
        "F30": "clocks that jump",
        "F32": "little memory and much that waits",
        "F34": "a bug in a loop",
        "F37": "files of earlier and later versions",
        "F40": "hours under load with random faults",
    },
    "Views and numbers": {
        "B26": "an event that nobody wants and nobody is told of",
        "B27": "none, one, two and fifty targets",
        "B37": "a scrape that counts tables",
        "B50": "a second rotation that ended at once",
        "B60": "a gauge below zero",
    },
    "Configs: the file and its YAML": {
        "C1": "a file that is not there or cannot be read",
        "C2": "an empty file",
        "C3": "a list or a text instead of a mapping",
        "C4": "tabs",
        "C5": "quotes and indents that are broken",
        "C6": "two documents",
        "C8": "tags that would run code",
        "C10": "a huge file",
        "C12": "keys that do not exist",
        "C13": "secrets that YAML takes for numbers",
        "C15": "variables that are not set",
        "C16": "files of secrets that are missing, large or open to all",
        "T61": "bombs of aliases and depth",
        "F35": "a bad file at a reload",
        "C56": "all of these at a reload",
        "B33": "a change that took effect too late",
        "B34": "a key that does nothing",
    },
    "Configs: sources and their checks": {
        "C14": "secrets that are short, empty or not expanded",
        "C17": "two ways to say one thing",
        "C18": "a signing key that is no base64",
        "C19": "a source without a check",
        "C20": "a scheme that does not exist",
        "C21": "an algorithm that is missing or weak",
        "C22": "names that are no header's",
        "C24": "one value where a list is meant",
        "C25": "an empty list of addresses",
        "C26": "a list that allows everybody",
        "C27": "what is no network",
        "C28": "trust in every address",
        "C29": "a proxy that is not trusted",
        "C32": "two sources on one path",
        "C33": "paths that are none",
    },
    "Configs: targets, routes and limits": {
        "C30": "routes that lead nowhere",
        "C31": "targets that nothing leads to",
        "C34": "URLs without a host",
        "C35": "schemes that are not HTTP",
        "C36": "credentials in URLs",
        "C37": "ports that are none",
        "C38": "hosts that are none",
        "C40": "metadata services as targets",
        "C41": "private targets where only public ones are allowed",
        "C43": "targets without TLS",
        "C44": "fragments, and hosts that are not ASCII",
        "C45": "times without a unit, or no times",
        "C47": "more at a time than there are descriptors",
        "C48": "sizes that are none",
        "C49": "a count of failures that is none",
        "C50": "addresses that cannot be listened on",
        "C51": "an admin listener that is open to all",
        "C52": "a store in a place that cannot be used",
        "C53": "a store that cannot be used",
        "C54": "certificates that cannot be used",
        "C55": "waits that contradict each other",
    },
    "Secrets, the host and what we are made of": {
        "T56": "secrets in URLs",
        "T60": "files that others may read",
        "T62": "secrets in tracebacks and dumps",
        "T63": "dependencies that are not what they were",
        "T64": "more rights than are needed",
        "T65": "secrets that change while it runs",
        "B8": "a secret header in another case",
        "B18": "secrets in answers and logs",
    },
}

LEFT_OUT: Mapping[str, str] = {}
"""Rows without a test, and why they do not apply."""


def rows() -> dict[str, str]:
    """All rows and what each is."""
    return {row: words for theme in THEMES.values() for row, words in theme.items()}


def met() -> dict[str, set[Path]]:
    """The files of the tests that name each row in a marker, also in one of a parameter."""
    found: dict[str, set[Path]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                for name in node.args:
                    found.setdefault(str(ast.literal_eval(name)), set()).add(path)
    return found


def table() -> str:
    """The themes, their rows and where the tests stand, as the README has them."""
    found = met()
    lines = ["| what is thrown at it | rows | tests |", "| --- | --- | --- |"]
    for theme, members in THEMES.items():
        files = sorted({str(path.relative_to(TESTS)) for row in members for path in found.get(row, ())})
        names = ", ".join(f"`{file.removesuffix('.py')}`" for file in files)
        lines.append(f"| {theme} | {' '.join(members)} | {names} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
