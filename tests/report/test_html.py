import dataclasses
import errno
import os
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.report import Explanation, Section, build_report, explanations, write_report
from mistjax.report.blocks import Facts, Fold, Picture, Plot, Table, Text, Words
from mistjax.report.build import _ranges
from mistjax.report.html import render
from mistjax.report.plots import score_curve

VOID = {"meta", "link", "img", "input", "br", "circle", "path"}


class Outline(HTMLParser):
    """Checks that every element is closed, and collects what the page refers to."""

    def __init__(self, page):
        super().__init__()
        self.open, self.references, self.ids, self.tags = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        names = ("src", "href", "xlink:href", "poster", "srcset", "data", "action")
        self.references += [attrs[name] for name in names if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(run_folder, tmp_path_factory, trace):
    runs = {
        "bare": run_folder("bare", [False, False, True], monitored=False),
        "ours": run_folder("ours", [True, False, True], monitored=True),
    }
    heat = {"observation/image": np.eye(4)}
    why = explanations([Explanation(trace(), 2, "It looks at the table.", heat, [("stone", 0.4)])])
    out = build_report(
        runs, tmp_path_factory.mktemp("report") / "out" / "report.html", title="Trial", extra=[why]
    )
    return out.read_text()


def test_the_report_is_one_file_that_asks_for_nothing_else(page):
    outline = Outline(page)
    assert {"video", "img", "svg", "table", "script"} <= set(outline.tags)
    assert all(ref.startswith(("data:", "#")) for ref in outline.references)
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert "@import" not in style
    assert "url(" not in style


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(page):
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    inner = {ref[1:] for ref in outline.references if ref.startswith("#")}
    assert inner <= set(outline.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(outline.ids)


def test_plots_take_every_colour_from_the_theme(trace):
    svg = Plot(score_curve(trace())).html("p")
    assert "var(--score)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#ffffff"}
    assert "<text" in svg


def test_the_report_tells_n_intervals_and_crashes(page):
    assert "33% [6%, 79%]" in page.replace('<span class="whole">', "").replace("</span>", "")
    assert "1 repaired, 0 broken of 3 pairs" in page
    assert "1 crashed" in page
    assert "OSError: no &lt;GL&gt;" in page
    assert "wrong cell" in page


def test_the_report_shows_what_the_alarm_relied_on(page):
    assert "It looks at the table." in page
    assert "Seed 0, at step 4." in page
    assert "image: what counted" in page


def test_a_number_leads_to_the_episodes_that_it_counts(page):
    listed = page.split('id="every-episode"')[1].split("</table>")[0]
    rows = re.findall(r"<tr data-([^>]*)>", listed)
    assert len(rows) == 8, "three episodes and a crash of both arms"
    picks = [dict(parse_qsl(unescape(p))) for p in re.findall(r'data-pick="([^"]*)"', page)]
    assert {"arm": "ours", "outcome": "succeeded"} in picks
    assert {"arm": "bare", "cause": "wrong cell"} in picks
    filters = set(re.findall(r'<select name="([^"]*)"', listed))
    for pick in picks:
        assert set(pick) <= filters, "a filter that is not there would pick everything"
    assert listed.count("repaired</td>") == 1 and listed.count('href="#video-') == 2


def test_a_report_names_arms_by_what_tells_them_apart(run_folder, tmp_path):
    folder = run_folder("bare", [True], monitored=False)
    for name in ("one", "two"):
        shutil.copytree(folder, tmp_path / "runs" / name)
    arms = [str(tmp_path / "runs" / name) for name in ("one", "two")]
    assert main(["report", *arms, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "change from one" in text and str(tmp_path) not in text


def test_text_from_runs_cannot_inject_markup():
    hostile = "<script>alert(1)</script>"
    blocks = [
        Text(hostile),
        Facts({hostile: (hostile, hostile)}),
        Table([{hostile: hostile}], hostile, hostile),
        Words([(hostile, 1.0)]),
        Fold(hostile, hostile),
        Picture(np.zeros((2, 2, 3), np.uint8), hostile + '"', hostile),
    ]
    page = render([Section(hostile, blocks, stand_in=hostile)], hostile, hostile)
    Outline(page)
    assert "<script>alert" not in page


def test_a_stand_in_is_labelled_as_one():
    assert "Stand-in: random weights" in render([Section("A", [], "random weights")], "t")
    assert 'class="stand-in"' not in render([Section("A", [])], "t")


def test_a_compiled_run_says_what_its_physics_are_and_has_no_latency(memory, trace, tmp_path):
    bare = trace(1, monitored=False, info={"physics": "kinematic"})
    untimed = dataclasses.replace(bare, timings_ms=np.full_like(bare.timings_ms, np.nan))
    page = build_report({"bare": memory(untimed)}, tmp_path / "r.html", title="t").read_text()
    assert "kinematic physics, not MuJoCo" in page
    assert "does not time single inferences" in page


def test_success_with_stand_in_assets_says_so(memory, trace, tmp_path):
    for replaced in (True, False):
        run = memory(trace(1, monitored=False, info={"stand_in_assets": replaced}))
        page = build_report({"only": run}, tmp_path / "r.html", title="T").read_text()
        assert ("not comparable to published scores" in page) is replaced


def test_a_page_has_both_themes():
    page = render([Section("A", [])], "t")
    assert "prefers-color-scheme:dark" in page
    assert "[data-theme=dark]" in page


def test_a_report_without_sections_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path / "report.html", "t")
    assert list(tmp_path.iterdir()) == []


def test_runs_without_monitor_or_video_give_a_shorter_report(memory, trace, tmp_path):
    run = memory(trace(1, monitored=False), trace(2, succeeded=True, monitored=False))
    page = build_report({"only": run}, tmp_path / "r.html", title="T").read_text()
    Outline(page)
    assert "Failure scores" not in page
    assert "<video" not in page


def test_a_run_without_an_episode_that_ended_is_named(run_folder, tmp_path):
    runs = {"bare": run_folder("sound", [True], False), "empty": tmp_path / "empty"}
    shutil.copytree(runs["bare"], runs["empty"])
    shutil.rmtree(runs["empty"] / "traces")
    (runs["empty"] / "episodes.parquet").unlink()
    with pytest.raises(ValueError, match="no episode of empty has ended"):
        build_report(runs, tmp_path / "report.html", title="Trial")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report([Section("One", [Text("words")])], page, "Title")
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_the_seeds_are_told_in_ranges():
    assert _ranges([9, 0, 1, 2, 4]) == "0–2, 4, 9"
