"""The README and the pages in docs/ show the numbers of the files behind them."""

import json
import re
from pathlib import Path

import pytest

import benchmarks.ablation
import benchmarks.gate_costs
from agents.common.tables import points
from benchmarks import latency, measure, scaling, soak, throughput, training
from scripts import cascade, paired, results
from skipnet_rl.gates import GATES
from skipnet_rl.statistics import half_width, wilson_interval

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md", *sorted(DOCS.glob("**/*.md"))]


def anchors(page: Path) -> set[str]:
    """Where a link into a page can lead, by GitHub's rule for headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in links:
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("dataset", ["rendered-digits", "cifar10"])
def test_ablation(dataset):
    found = json.loads((DOCS / f"ablation-{dataset}.json").read_text())
    assert benchmarks.ablation.table(found) in (DOCS / "ablation.md").read_text()
    assert set(found["variants"]) == set(benchmarks.ablation.VARIANTS)
    assert all(len(runs) == 3 for runs in found["variants"].values())


def test_every_variant_has_the_same_number_of_steps_and_episodes():
    options = benchmarks.ablation.Options()
    for name, change in benchmarks.ablation.VARIANTS.items():
        args = benchmarks.ablation.arguments(change, 0, options)
        args.check()
        assert len(args.plan()) == options.steps, name
        assert args.batch_size == 128, name


def test_gate_costs():
    stated = json.loads((DOCS / "gates.json").read_text())
    assert benchmarks.gate_costs.table(stated) in (DOCS / "gates.md").read_text()
    for gate in GATES:
        assert benchmarks.gate_costs.costs(38, gate) == pytest.approx(stated[gate]["38"])
    assert stated["ff2"]["110"]["of_block"] == pytest.approx(12.5, abs=0.1)  # the paper's figure
    assert stated["ff1"]["38"]["of_block"] == pytest.approx(15.6, abs=0.1)  # the paper says 19
    assert stated["rnn"]["110"]["of_block"] == pytest.approx(0.025, abs=0.001)  # the paper says 0.04


@pytest.mark.parametrize("page, heading, source, least", [
    ("../README.md", "### On CIFAR-10", "policies-cifar10/comparison.md", 10),
    ("results.md", "## ResNet-38 to ResNet-152 on CIFAR-10", "results-cifar10/results.md", 5),
])  # fmt: skip
def test_the_page_shows_rows_of(page, heading, source, least):
    stated = (DOCS / source).read_text().splitlines()
    _, section = (DOCS / page).read_text().split(heading)
    rows = [line for line in section.split("!")[0].splitlines() if line.startswith("| ")]
    assert len(rows) >= least and set(rows) <= set(stated)


@pytest.mark.parametrize("script", [cascade, paired])
def test_the_page_of_results_has_the_table_of(script):
    found = json.loads((DOCS / "results-cifar10" / script.FILE).read_text())
    assert script.table(found) in (DOCS / "results.md").read_text()


def test_the_readme_has_the_numbers_of_shipped_weights():
    stored = json.loads((DOCS / "results-cifar10" / paired.FILE).read_text())
    found, n = stored["networks"], stored["n_images"]
    _, section = (DOCS.parent / "README.md").read_text().split("## Results")
    rows = [line.split("|")[2:5] for line in section.split("!")[0].splitlines() if line.endswith("` |")]
    assert len(rows) >= 9
    for flops, accuracy, name in rows:
        network = found[name.strip(" `")]
        assert flops.strip() == f"{network['mega_flops']:.0f}"
        assert network["accuracy_ci95"] == list(wilson_interval(n * network["accuracy"], n))
        assert accuracy.strip() == f"{points(network['accuracy'], half_width(network['accuracy_ci95']))} %"


@pytest.mark.parametrize("added", [{}, {"n_images": 2_500}])
def test_intervals_of_older_rows_are_counted_anew(tmp_path, added):
    row = {"name": "HRL", "accuracy": 0.9, "accuracy_ci95": 0.3, **added}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row]}))
    (read,) = results.read(tmp_path)
    n = added.get("n_images", 10_000)
    assert (read["n_images"], read["accuracy_ci95"]) == (n, pytest.approx(wilson_interval(0.9 * n, n)))


def test_the_table_of_results():
    assert (
        results.table(results.read(DOCS / "results-cifar10"))
        == (DOCS / "results-cifar10" / "results.md").read_text()
    )


@pytest.mark.parametrize("name, module", [
    ("throughput-cpu", throughput), ("training-cpu", training), ("latency", latency), ("scaling", scaling),
    ("soak", soak),
])  # fmt: skip
def test_benchmarks(name, module):
    found = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text())
    assert f"<!-- {name} -->\n{module.table(found)}<!-- end of {name} -->" in measure.PAGE.read_text()


def test_candidates_take_turns_and_the_first_does_not_count():
    calls = []
    timings = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert 0 < timings["a"].lower <= timings["a"].median <= timings["a"].upper
    assert measure.Timing.of([1.0, 2.0, 4.0]) == measure.Timing(2.0, 1.5, 3.0)
