"""What the study of LIBERO's loop makes of its episodes."""

from experiments.build.tables.libero import libero_single
from experiments.studies.libero_loop import by_fault, named, won
from mistjax.studies.table import rows


def episode(success, named_step=None, named_input=None):
    fault = {"fault": "wrist_frozen", "fault_input": "wrist", "fault_onset": 7}
    found = {"success": success, "named_step": named_step, "named_input": named_input}
    return {**fault, **found, "median_ms": 10.0}


def outcomes():
    """Four episodes: two that the loop alone ends well, one that bare alone does, one lost."""
    bare = [False, False, True, False]
    mist = [
        episode(True, 10, "wrist"),
        episode(True, 25, "wrist"),
        episode(False, 10, "state"),
        episode(False),
    ]
    return {
        "wrist_frozen": {"bare": dict(enumerate(map(episode, bare))), "mist": dict(enumerate(mist))}
    }


def test_paired_arms_and_what_was_named_when():
    found = outcomes()
    assert won(found) == {"wrist_frozen": {"bare": {"won": 2, "lost": 1, "p": 1.0}}}
    assert named(found) == {"wrist_frozen": {"wrist": {"wrist": 2, "state": 1, "nothing": 1}}}
    part = by_fault(found, execute=5)["wrist_frozen"]["wrist_frozen"]
    assert part["success"] == {"bare": 1, "mist": 2}
    assert part["named"] == {"at once": 1, "within ten looks": 1, "never": 2}


def test_a_table_of_single_faults():
    found = outcomes()
    table = [
        row.to_json()
        for row in rows("wrist_frozen", found["wrist_frozen"], {"bare": 0, "mist": 0}, None)
    ]
    parts = {"won": won(found), "named": named(found), "faults": by_fault(found, execute=5)}
    text = libero_single({"tables": {"study": table}, **parts})
    line = text.splitlines()[-1]
    assert line.startswith("| wrist frozen | 25%") and "2 / 1, p 1" in line
    assert line.endswith("| wrist 2, state 1, nothing 1 | at once 1, within ten looks 1, never 2 |")
