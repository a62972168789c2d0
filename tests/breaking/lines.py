"""The lines that carry the promises, and what each is replaced with to break it.

Each break is small and reads as if somebody had meant well: those are the ones that a review lets through.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """One change of one file."""

    name: str
    file: str
    """Below the root of the project."""
    old: str
    """Occurs exactly once."""
    new: str
    seen_by: tuple[str, ...] = ()
    """Test files or tests that are asked first; where none of them turns red, the whole suite is."""


LINES = (
    Break(
        "the answer comes after the commit",
        "relay/ingress.py",
        "accepted = await self._store.accept(event, found.targets, found.courses)",
        "asyncio.ensure_future(self._store.accept(event, found.targets, found.courses))\n"
        "        accepted = Accepted(event.id, duplicate=False)",
        ("tests/http/test_commit_before_answer.py::test_a_full_store_is_503_and_recovers_by_itself",),
    ),
    Break(
        "a batch is committed",
        "relay/store/sqlite/committing.py",
        'db.execute("COMMIT")',
        'db.execute("ROLLBACK")',
        ("tests/store/test_store_accepting.py::test_an_event_is_claimed_as_it_was_received",),
    ),
    Break(
        "a commit is synced",
        "relay/store/sqlite/connection.py",
        '"synchronous=FULL"',
        '"synchronous=NORMAL"',
        (
            "tests/store/test_sqlite_opening.py::test_starting_afresh_sets_aside_and_never_deletes",
            "tests/store/test_sqlite_guards.py",
        ),
    ),
    Break(
        "a log left behind is written anew",
        "relay/store/sqlite/starting.py",
        "        renew_log(path)\n        return guard",
        "        return guard",
        ("tests/program/test_power_cut.py::test_a_failed_fsync_and_then_a_power_cut_lose_nothing",),
    ),
    Break(
        "a recovery learns anew what is committed",
        "relay/store/sqlite/recovering.py",
        "        await connection.run(ledger.load)\n",
        "",
        (
            "tests/store/test_sqlite_tampering.py::test_claims_of_a_commit_that_counts_although_it_was_refused_are_given_back",
        ),
    ),
    Break(
        "a log that is cut under a commit is found out",
        "relay/store/sqlite/presence.py",
        'return None if any(os.pread(self._fd, FRAME_HEADER, last)) else "truncated"',
        "return None",
        (
            "tests/store/test_sqlite_tampering.py::test_a_commit_whose_files_go_while_it_is_made_is_not_promised",
            "tests/store/test_sqlite_lost_logs.py",
        ),
    ),
    Break(
        "a log that was lost at rest is told at the stop",
        "relay/store/sqlite/writer.py",
        "            except (sqlite3.Error, ValueError, OSError, StoreUnusable) as error:\n"
        "                self._fall_out(error)\n        if self._db",
        "            except (sqlite3.Error, ValueError, OSError, StoreUnusable):\n"
        "                pass\n        if self._db",
        ("tests/store/test_sqlite_lost_logs.py",),
    ),
    Break(
        "an old log undoes nothing",
        "relay/store/sqlite/file.py",
        'if "salts" in note and size >= LOG_HEADER and salts_of(log) != note["salts"]:',
        "if size < 0:",
        ("tests/store/test_sqlite_lost_logs.py::test_an_old_log_that_is_put_back_after_a_recovery_undoes_nothing",),
    ),
    Break(
        "claims that nobody got are given back",
        "relay/store/sqlite/recovering.py",
        "        await connection.run(partial(_give_back, tokens=refused))\n",
        "",
        (
            "tests/store/test_sqlite_tampering.py::test_claims_of_a_commit_that_counts_although_it_was_refused_are_given_back",
        ),
    ),
    Break(
        "what fails the check is turned away",
        "relay/ingress.py",
        "if isinstance(verified, Refusal):",
        "if isinstance(verified, Refusal) and not body:",
        ("tests/http/test_proofs_over_http.py::test_a_signed_timestamp_must_lie_within_five_minutes",),
    ),
    Break(
        "the whole proof is compared",
        "relay/rules/verification.py",
        "hmac.compare_digest(proof, wanted)",
        "hmac.compare_digest(proof[:16], wanted[:16])",
        ("tests/rules/test_verification.py",),
    ),
    Break(
        "what was read of other headers proves nothing",
        "relay/rules/verification.py",
        "claim.headers is not request.headers or claim.check is not check",
        "claim.check is not check",
        ("tests/rules/test_verification.py",),
    ),
    Break(
        "what was read by another check proves nothing",
        "relay/rules/verification.py",
        "or claim.check is not check:",
        "or not claim.scheme.secrets:",
        ("tests/rules/test_verification.py",),
    ),
    Break(
        "an old request is turned away",
        "relay/rules/verification.py",
        "if abs(ahead) > tolerance.total_seconds():",
        "if ahead > tolerance.total_seconds():",
        ("tests/rules/test_verification.py",),
    ),
    Break(
        "a known dedupe key stores nothing",
        "relay/store/sqlite/batch.py",
        "known = _known_events(tx.db, [key for key in keys if key])",
        "known: dict[bytes, tuple[str, bytes]] = {}",
        ("tests/store/test_store_accepting.py::test_a_known_key_stores_nothing_and_names_the_first_event",),
    ),
    Break(
        "a forwarded address counts from trusted proxies alone",
        "relay/rules/addresses.py",
        "if not forwarded_for or not _in_any(address, trusted):",
        "if not forwarded_for:",
        ("tests/rules/test_addresses.py",),
    ),
    Break(
        "the fence: a lost claim settles nothing",
        "relay/store/sqlite/batch.py",
        "seq = held.pop((claim.event.id, claim.target, claim.token), None)",
        "seq = next((s for (e, t, _), s in held.items() if (e, t) == (claim.event.id, claim.target)), None)",
        (
            "tests/store/test_store_settling.py",
            "tests/store/test_store_claiming.py::test_a_fence_lets_nobody_settle_what_another_holds",
        ),
    ),
    Break(
        "the number of an attempt is stored before it is sent",
        "relay/store/sqlite/claiming.py",
        "attempts = attempts + 1, claim = ?",
        "attempts = attempts + 0, claim = ?",
        ("tests/store/test_store_claiming.py::test_attempt_numbers_rise_and_are_stored_before_the_request",),
    ),
    Break(
        "a start takes back the claims of the process before",
        "relay/store/sqlite/__init__.py",
        "batch.reclaim(tx, lease_before=None, alive=frozenset())",
        "batch.reclaim(tx, lease_before=datetime.fromtimestamp(0, UTC), alive=frozenset())",
        (
            "tests/store/test_store_claiming.py::test_numbers_never_fall_however_claims_end",
            "tests/store/test_store_courses.py",
            "tests/program/test_kill.py",
        ),
    ),
    Break(
        "a recovery lets go of locks that nobody holds any more",
        "relay/store/sqlite/writer.py",
        "        if self._is_tainted:",
        "        if False:",
        ("tests/store/test_sqlite_outages.py::test_a_lock_that_nobody_holds_any_more_ends_with_the_outage",),
    ),
    Break(
        "a recovery keeps the locks of SQLite",
        "relay/store/sqlite/file.py",
        "if self._file is not None and os.path.samestat(os.fstat(self._file), database.stat()):",
        "if False:",
        (
            "tests/store/test_sqlite_outages.py::test_a_program_that_looks_in_after_an_outage_does_not_take_the_log_away",
        ),
    ),
    Break(
        "an outcome outlives an outage of the store",
        "relay/store/grouping/writer.py",
        "kept = [operation for part in unwritten for operation in part.settlements]",
        "kept = [operation for part in unwritten for operation in part.settlements if operation.future.done()]",
        ("tests/store/test_sqlite_outages.py::test_a_mark_that_cannot_be_written_is_kept_and_written_first",),
    ),
    Break(
        "nothing is handed over of a target that is not well",
        "relay/store/grouping/handing.py",
        "            if flows(health, now):\n",
        "            if True:\n",
        (
            "tests/store/test_store_handing.py::test_nothing_is_handed_over_of_a_target_that_was_disabled_by_the_same_transaction",
        ),
    ),
    Break(
        "nothing is handed over past what waits longer",
        "relay/delivery/lane.py",
        "has_older = self._fetch is not None or self._is_due(now)",
        "has_older = False",
        ("tests/delivery/test_handing_over.py",),
    ),
    Break(
        "what was claimed as it was stored by a refused commit is given back",
        "relay/store/grouping/operations.py",
        " + ([] if self.handing is None else [self.handing.token])",
        "",
        (
            "tests/store/test_store_handing.py::test_what_was_claimed_by_a_commit_that_was_refused_is_due_as_soon_as_the_store_is_back",
        ),
    ),
    Break(
        "what may wait is recorded by itself",
        "relay/store/grouping/inbox.py",
        "            self._linger = self._loop.call_later(LINGER_S, self.stir)\n",
        "            pass\n",
        ("tests/store/test_store_handing.py::test_a_settlement_that_may_wait_is_recorded_by_itself",),
    ),
    Break(
        "an event waits for no large claim",
        "relay/store/grouping/inbox.py",
        "self._claimable(pending) > ALONG",
        "False",
        ("tests/store/test_store_handing.py::test_an_event_waits_for_no_large_claim",),
    ),
    Break(
        "a lane is not told of what its waiting claim will find",
        "relay/store/grouping/writer.py",
        "changes.waiting - told_by(self._inbox.claims)",
        "changes.waiting",
        ("tests/store/test_store_handing.py::test_an_event_waits_for_no_large_claim",),
    ),
    Break(
        "what may say that a target is to get nothing goes before events",
        "relay/store/grouping/inbox.py",
        "self._gave_way and not self._are_news",
        "self._gave_way",
        (
            "tests/store/test_store_handing.py::test_nothing_is_handed_over_before_a_large_claim_to_a_target_that_is_about_to_be_disabled",
        ),
    ),
    Break(
        "events do not hold up a claim for ever",
        "relay/store/grouping/inbox.py",
        "bool(accepts) and not self._gave_way and",
        "bool(accepts) and",
        ("tests/store/test_store_handing.py::test_a_large_claim_waits_for_one_commit_alone",),
    ),
    Break(
        "nothing is claimed while nothing can be written",
        "relay/store/grouping/writer.py",
        "        self._refuse_in_outage()\n        self._watch_the_late()\n        return self._inbox.claim(wish)",
        "        self._watch_the_late()\n        return self._inbox.claim(wish)",
        ("tests/store/test_sqlite_outages.py::test_a_mark_that_cannot_be_written_is_kept_and_written_first",),
    ),
    Break(
        "three counted failures disable a target, not four",
        "relay/rules/health.py",
        "failures < target.disable_after:",
        "failures <= target.disable_after:",
        ("tests/rules/test_health.py",),
    ),
    Break(
        "failures that happen together are one",
        "relay/rules/health.py",
        "if any(at is not None and began_at <= at for at in news):",
        "if any(at is not None and began_at <= at for at in news[:1]):",
        ("tests/rules/test_health.py",),
    ),
    Break(
        "a success sets the count to 0",
        "relay/rules/health.py",
        "better = health.succeeded(now, began_at)._replace(\n        failures=0,",
        "better = health.succeeded(now, began_at)._replace(",
        ("tests/rules/test_health.py",),
    ),
    Break(
        "a success is judged in full where failures count",
        "relay/model/delivering.py",
        "self.failures\n            or self.disabled_by",
        "self.disabled_by",
        ("tests/rules/test_health.py::test_of_a_clean_target_a_success_changes_only_when_the_last_one_was",),
    ),
    Break(
        "what a disabled target should get is held",
        "relay/rules/health.py",
        "if health.state is TargetState.DISABLED:\n        return _probe_permit(",
        "if health.state is TargetState.DISABLED and health.disabled_by is not DisabledBy.HAND:\n"
        "        return _probe_permit(",
        ("tests/rules/test_health.py::test_what_is_shown_is_what_is_enforced",),
    ),
    Break(
        "an outage alone ends no delivery",
        "relay/rules/retry.py",
        "claim.took_at is not None and claim.took_at > first_try_at",
        "claim.took_at is not None",
        ("tests/rules/test_retry.py",),
    ),
    Break(
        "a pause that the target asks for is kept",
        "relay/rules/retry.py",
        "return max(asked, own)",
        "return min(asked, own) if asked else own",
        ("tests/rules/test_retry.py",),
    ),
    Break(
        "a redirect is no success",
        "relay/rules/answers.py",
        "if target.success is None and 200 <= status < 300:",
        "if target.success is None and 200 <= status < 400:",
        ("tests/rules/test_answers.py",),
    ),
    Break(
        "the address that is dialled is judged",
        "relay/delivery/egress.py",
        "if reason := refusal(address, self._egress):",
        "if (reason := refusal(address, self._egress)) and address in self._egress.deny:",
        ("tests/delivery/test_egress.py",),
    ),
    Break(
        "an answer of DNS is judged",
        "relay/delivery/egress.py",
        'verdicts = [(answer, refusal(answer["host"], self._egress)) for answer in answers]',
        "verdicts: list[tuple[ResolveResult, str | None]] = [(answer, None) for answer in answers]",
        ("tests/delivery/test_egress.py",),
    ),
    Break(
        "a body arrives byte for byte",
        "relay/ingress.py",
        "body=request.body,",
        "body=request.body.rstrip(),",
        ("tests/http/test_opaque_content.py",),
    ),
    Break(
        "a body is sent byte for byte",
        "relay/delivery/sender.py",
        "url, body = (self._target.url, body) if shape is None",
        "url, body = (self._target.url, body.rstrip()) if shape is None",
        ("tests/http/test_opaque_content.py", "tests/delivery/test_sender.py::test_a_target_gets_the_same_bytes"),
    ),
    Break(
        "a body that passes as it came is sent byte for byte",
        "relay/delivery/sender.py",
        "self._wire.post_lines(lines, many, body), dropped",
        "self._wire.post_lines(lines, many, body.rstrip()), dropped",
        ("tests/delivery/test_sender.py",),
    ),
    Break(
        "so is one that is sent without a task",
        "relay/delivery/sender.py",
        "request = self._wire.request(lines, many, body)",
        "request = self._wire.request(lines, many, body.rstrip())",
        ("tests/delivery/test_sender.py",),
    ),
    Break(
        "a silent target is given up without a task too",
        "relay/delivery/posting.py",
        "self.deadline = deadlines.begin(self._end)",
        "self.deadline = deadlines.begin(lambda: None)",
        ("tests/delivery/test_posting.py::test_a_silent_target_is_given_up_at_its_deadline",),
    ),
    Break(
        "what is under way without a task is interrupted at a stop, and recorded",
        "relay/delivery/carrying.py",
        "        if is_posting:\n",
        "        if False:\n",
        ("tests/delivery/test_dispatcher.py::test_a_stop_interrupts_a_hung_request_without_a_step",),
    ),
    Break(
        "an answer that nobody asked for is not taken for the next one",
        "relay/delivery/pool.py",
        "if line.descriptor in spoken:",
        "if line.descriptor in spoken and False:",
        (
            "tests/delivery/test_hostile_targets.py::test_what_the_loop_has_not_read_yet_is_noticed_before_a_connection_is_used_again",
        ),
    ),
    Break(
        "a damaged body is never sent",
        "relay/store/sqlite/__init__.py",
        "if hashlib.sha256(body).digest() != sha256:",
        "if not body:",
        ("tests/store/test_sqlite_damage.py::test_a_damaged_body_is_refused_and_never_handed_out",),
    ),
    Break(
        "retention deletes nothing that is pending",
        "relay/store/grouping/ages.py",
        "OPEN = (DeliveryState.PENDING, DeliveryState.IN_FLIGHT)",
        "OPEN = (DeliveryState.IN_FLIGHT,)",
        ("tests/store/test_store_pruning.py::test_what_is_pending_or_under_way_is_never_deleted",),
    ),
    Break(
        "a store that vanished is not made anew",
        "relay/store/sqlite/file.py",
        "if remembered or side_file:",
        "if side_file:",
        ("tests/store/test_sqlite_guards.py::test_a_store_that_vanished_is_not_started_empty",),
    ),
    Break(
        "no event is answered that goes to a file which was taken away",
        "relay/store/sqlite/presence.py",
        "            self.check()\n            result = work(db)",
        "            result = work(db)",
        ("tests/store/test_sqlite_tampering.py::test_the_next_event_is_refused_where_a_file_was_tampered_with",),
    ),
    Break(
        "two processes cannot have one store",
        "relay/store/sqlite/file.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n        except BlockingIOError:",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n        except BlockingIOError:",
        (
            "tests/store/test_sqlite_guards.py::test_a_store_in_use_is_found_in_use_by_another_name_too",
            "tests/store/test_sqlite_opening.py",
        ),
    ),
    Break(
        "what a target echoes of our credentials is blotted out",
        "relay/delivery/sender.py",
        "return blotted(text, secrets, is_cut=is_cut)[:EXCERPT]",
        "return blotted(text[:EXCERPT], secrets)",
        ("tests/delivery/test_credentials_sent.py",),
    ),
    Break(
        "an outage of ours is never a 4xx",
        "relay/ingress.py",
        'answer = Turned(503, "store_unavailable", str(error), RETRY_SOON)',
        'answer = Turned(429, "store_unavailable", str(error), RETRY_SOON)',
        ("tests/http/test_commit_before_answer.py",),
    ),
    Break(
        "our own stop is no failure of a target",
        "relay/rules/health.py",
        "_TELLS_NOTHING = frozenset({OutcomeKind.INTERRUPTED, OutcomeKind.SKIPPED})",
        "_TELLS_NOTHING = frozenset({OutcomeKind.SKIPPED})",
        ("tests/rules/test_health.py::test_what_fails_at_a_disabled_target_changes_nothing_but_the_probes",),
    ),
    Break(
        "a log line never waits for its reader",
        "relay/telemetry/pipe.py",
        "if len(self._queue) >= self._limit or self._closing.is_set():",
        "if self._closing.is_set():",
        ("tests/telemetry/test_pipe.py",),
    ),
    Break(
        "a node's transaction is committed",
        "relay/store/postgres/connection.py",
        'if await db.execute("COMMIT") != "COMMIT":',
        'if await db.execute("ROLLBACK") != "ROLLBACK":',
        ("tests/store/test_postgres_nodes.py::test_each_delivery_is_claimed_by_one_node",),
    ),
    Break(
        "a node's commit is synced",
        "relay/store/postgres/connection.py",
        "SET LOCAL synchronous_commit TO on; ",
        "",
        (
            "tests/store/test_postgres_faults.py::test_what_is_committed_is_on_the_disk_whatever_the_server_s_default_is",
        ),
    ),
    Break(
        "a probe is one over all nodes",
        "relay/store/postgres/claiming.py",
        "        if await _others_are_at_it(tx, wish):",
        "        if False:",
        ("tests/store/test_postgres_nodes.py::test_a_probe_is_sent_once_and_not_once_a_node",),
    ),
    Break(
        "a node asks by the health that is stored",
        "relay/store/postgres/claiming.py",
        "        if stored is not mine and (any(alone) or _is_alone(stored, wish.now)):",
        "        if False:",
        ("tests/store/test_postgres_nodes.py::test_a_node_hears_that_another_has_disabled_a_target",),
    ),
    Break(
        "three failures are three over all nodes",
        "relay/store/postgres/batch.py",
        "    await tx.lock_health(settlement.claim.target for settlement in settlements)",
        "    await tx.read_health(settlement.claim.target for settlement in settlements)\n    tx._locked |= tx._read",
        ("tests/store/test_postgres_nodes.py::test_three_failures_are_three_wherever_they_are_recorded",),
    ),
    Break(
        "a claim of a node that is gone is lost",
        "relay/store/postgres/batch.py",
        "    return {(id_, target, token): seq "
        "for id_, target, token, seq in await tx.rows(_HELD, list(ids), list(tokens))}",
        "    tokens |= {token + (1 << 32) for token in tokens}\n"
        "    rows = await tx.rows(_HELD, list(ids), list(tokens))\n"
        "    return {(id_, target, claim.token): seq for id_, target, _, seq in rows for claim in claims}",
        (
            "tests/store/test_postgres_nodes.py::test_the_work_of_a_node_that_is_gone_is_handed_over_when_its_lease_ends",
        ),
    ),
    Break(
        "who follows waits for what may still appear before",
        "relay/store/postgres/numbering.py",
        "pg_snapshot_xmin(pg_current_snapshot())",
        "pg_snapshot_xmax(pg_current_snapshot())",
        ("tests/store/test_postgres_nodes.py::test_what_is_still_being_stored_holds_back_what_follows",),
    ),
)
