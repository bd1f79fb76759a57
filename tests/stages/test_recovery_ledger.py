"""The poison ledger's rules."""

from hypothesis import given
from hypothesis import strategies as st

from stages.owner.recovery import PoisonLedger


def test_a_frame_is_isolated_after_two_deaths_and_skipped_after_a_third_alone() -> None:
    ledger = PoisonLedger()
    batch = [(1, 4), (1, 5), (1, 6)]
    assert ledger.blame("mesh", batch) == ledger.blame("detect", batch)
    assert ledger.blame("mesh", batch).isolate == tuple(batch)
    verdict = ledger.blame("mesh", [(1, 5)])
    assert verdict.skip == ((1, 5),)
    assert not verdict.isolate


def test_a_frame_that_shares_its_batch_is_never_skipped() -> None:
    ledger = PoisonLedger()
    for _ in range(10):
        assert not ledger.blame("mesh", [(1, 4), (1, 5)]).skip


def test_committing_clears_suspicion() -> None:
    ledger = PoisonLedger()
    ledger.blame("mesh", [(1, 4)])
    ledger.blame("mesh", [(1, 4)])
    ledger.committed(1, 5)
    assert not ledger.blame("mesh", [(1, 4)]).skip


@given(
    poison=st.integers(0, 20),
    batches=st.lists(st.integers(1, 6), min_size=1, max_size=30),
)
def test_only_the_poisonous_frame_is_ever_skipped(poison: int, batches: list[int]) -> None:
    """A stage that dies exactly when the poisonous frame is in its batch: everyone else gets through."""
    ledger = PoisonLedger()
    isolated: set[int] = set()
    skipped: set[int] = set()
    position = 0
    sizes = iter(batches * 100)
    deaths = 0
    while position <= 20:
        if position in isolated:
            batch = [position]
        else:
            batch = []
            for frame in range(position, min(21, position + next(sizes))):
                if frame in isolated:
                    break
                batch.append(frame)
        if poison in batch and poison not in skipped:
            deaths += 1
            verdict = ledger.blame("mesh", [(1, frame) for frame in batch])
            isolated |= {frame for _, frame in verdict.isolate}
            skipped |= {frame for _, frame in verdict.skip}
            continue
        position = batch[-1] + 1
        ledger.committed(1, position)
    assert skipped == {poison}
    assert deaths == 3
