"""docs/scaling.md says what its script says."""

from experiments import scaling


def test_a_row_of_the_page_is_what_the_estimate_says(monkeypatch):
    monkeypatch.setattr(scaling, "CASES", scaling.CASES[1:2])
    page = scaling.PAGE.read_text(encoding="utf-8")
    for train, checkpointing in (("lora", True), ("lora", False), ("full", True)):
        row = scaling.table(train, checkpointing)[-1]
        assert row.startswith("| sd35-medium | 512 |") and f"{row}\n" in page
    assert scaling.HEAD in page and scaling.TAIL in page
