"""Code and commands on the pages run, and the numbers are those of the files behind them."""

import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from commands import parsed

import benchmarks.ablation
import benchmarks.gate_costs
from agents import cascade, hybrid_reinforce
from agents.common.flags import CommonArgs
from agents.common.presets import PRESETS
from agents.common.tables import comparison, points
from benchmarks import (
    chain_training,
    chains,
    compiling,
    deferral,
    gpu,
    information,
    latency,
    measure,
    scaling,
    soak,
    throughput,
    training,
)
from envs import factory
from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from scripts import paired, results, results_page, ship_chains
from scripts.rows import ROWS
from skipnet_rl import adapters
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.gates import GATES
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.statistics import half_width, mean_interval, wilson_interval

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
PAGES = [README, DOCS.parent / "CHANGELOG.md", *sorted(DOCS.glob("**/*.md"))]
FEWER = {"20_000": "1_000", "first(1_000)": "first(50)"}  # what the tests run of a block of code


def blocks(language: str) -> list[Any]:
    """Blocks of code on the pages, with an id for each."""
    found = []
    for page in PAGES:
        codes = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found += [pytest.param(code, id=f"{page.stem}-{number}") for number, code in enumerate(codes)]
    return found


def commands() -> list[Any]:
    """Commands on the pages, each once: those in blocks and those within a sentence."""
    lines = []
    for page in PAGES:
        text = re.sub(r"torchrun --nproc-per-node \d+", "python", page.read_text().replace(" \\\n", ""))
        lines += re.findall(r"^(?:.* && \S*| +)?(python -m .*)$", text, re.MULTILINE)
        lines += [" ".join(line.split()) for line in re.findall(r"(?<!`)`(python -m [^`]+)`", text)]
    lines = [line.split("  #")[0].strip() for line in lines]
    return sorted({line for line in lines if "NAME" not in line.split()[2]})


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, by GitHub's rule."""
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


def test_the_readme_is_short_and_begins_with_code():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("```bash") for line in lines[:50])


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RoutingMDP" in (tmp_path / "api" / "core" / "index.html").read_text()


@pytest.mark.parametrize("code", blocks("python"))
def test_python_on_a_page_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIPNET_DATA", raising=False)
    monkeypatch.setattr(adapters, "TABLE", dict(adapters.TABLE))  # a page registers a block of its own
    if "torchrl" in code:
        pytest.importorskip("torchrl")
    for many, few in FEWER.items():
        code = code.replace(many, few)
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("command", commands())
def test_a_command_on_a_page_has_flags_that_exist(command):
    args = parsed(command)
    if isinstance(args, CommonArgs):
        args.check()


@pytest.mark.parametrize("entry", results.networks(DOCS / "results-cifar10"), ids=lambda entry: entry["name"])
def test_the_command_of_a_listed_network_is_one_of_today(entry):
    parsed(entry["command"]).check()


def test_the_readme_names_every_agent():
    _, section = README.read_text().split("## Agents")
    named = set(re.findall(r"`(\w+)`", section.split("##")[0]))
    assert {page.stem for page in (DOCS.parent / "agents").glob("*.py")} - {
        "__init__",
    } <= named


@pytest.mark.parametrize("section", [
    "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End",
    "Information",
])  # fmt: skip
def test_the_page_of_environments_has_the_docstring(section):
    _, text = inspect.cleandoc(SkipNetEnv.__doc__ or "").split(f"## {section}\n")
    assert f"## {section}\n{text.split('## ')[0]}" in (DOCS / "environments.md").read_text()


def test_the_page_of_environments_has_every_argument():
    _, section = (DOCS / "environments.md").read_text().split("## Arguments")
    rows = [line.split("|")[1] for line in section.split("## ")[0].splitlines() if line.startswith("| `")]
    stated = re.findall(r"`(\w+)`", " ".join(rows))
    takers = (
        ChainProblem,
        ModelProblem,
        factory.parts,
        factory.make_vector_env,
        SkipNetEnv,
        SkipNetVectorEnv,
    )
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    assert sorted(stated) == sorted(known - {"depth", "why", "kwargs", "mdp", "images"})


def test_the_page_of_environments_has_every_id():
    _, section = (DOCS / "environments.md").read_text().split("## Registered ids")
    named = re.findall(r"`(\w+-v\d+)`", section)
    assert sorted(named) == sorted(id for id in gym.registry if id.startswith("Skip"))


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


@pytest.mark.parametrize("folder", ["policies-cifar10", "policies-resnet38", "policies-chain"])
def test_the_comparison_of_policies_is_that_of_its_file(folder):
    found = json.loads((DOCS / folder / "comparison.json").read_text())
    rows = [
        {key: math.nan if value is None else value for key, value in row.items()} for row in found["policies"]
    ]
    rows = [{**row, "beats_random": None} if row.get("beats_random") is math.nan else row for row in rows]
    text = (DOCS / folder / "comparison.md").read_text()
    assert comparison(found["title"], rows) == text


@pytest.mark.parametrize(
    "folder, heading, count",
    [
        ("policies-cifar10", "## On CIFAR-10\n", 15),
        ("policies-resnet38", "## On CIFAR-10, ResNet-38\n", 16),
        ("policies-chain", "## On a chain\n", 6),
    ],
)
def test_the_page_of_policies_shows_rows_of_the_comparison(folder, heading, count):
    stated = (DOCS / folder / "comparison.md").read_text().splitlines()
    _, section = (DOCS / "policies.md").read_text().split(heading)
    rows = [line for line in section.split("!")[0].split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) >= count and set(rows) <= set(stated)


NETWORKS = results.networks(DOCS / "results-cifar10")


def stored_pairs(dataset: str) -> dict:
    """Differences between networks on a data set."""
    return json.loads((DOCS / f"results-{dataset}" / paired.FILE).read_text())


def test_the_page_of_results_is_that_of_its_files():
    """Made again by `python -m scripts.results --page docs/results.md`."""
    out, text = DOCS / "results-cifar10", (DOCS / "results.md").read_text()
    chains = {name: json.loads(file.read_text()) for name, file in results.parts_with_chains(out).items()}
    pairs = {"cifar10": stored_pairs("cifar10"), "cifar100": stored_pairs("cifar100")}
    for name, part in results_page.parts(NETWORKS, pairs, chains).items():
        assert f"<!-- {name} -->\n{part}<!-- end of {name} -->" in text, name


def test_a_command_of_results_reads_what_is_shipped_or_written_before():
    known, written = {entry["name"]: entry for entry in NETWORKS}, set()
    for entry in results_page.in_order(known):
        args = parsed(results_page.command(entry, known).replace("\\\n", ""))
        for start in (args.weights, getattr(args, "gate_weights", None), *getattr(args, "teacher", ())):
            if start not in (None, "none", "auto"):
                assert "file" in known.get(start, {}) or Path(start).parent in written, start
        written.add(args.run_dir)
    assert len(written) == len(NETWORKS)


def readme_results() -> list[list[str]]:
    """Cells of the README's table of results: network, MFLOPs, accuracy, name."""
    _, section = README.read_text().split("## Results")
    rows = [line.split("|")[1:-1] for line in section.split("!")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_the_readme_has_the_numbers_of_shipped_weights():
    stored = stored_pairs("cifar10")
    found, n = stored["networks"], stored["n_images"]
    rows = [row[1:] for row in readme_results() if not row[3].startswith("`chain")]
    assert len(rows) >= 5 and len(readme_results()) <= 8
    for flops, accuracy, name in rows:
        network = found[name.strip("`")]
        assert flops == f"{network['mega_flops']:.0f}"
        assert network["accuracy_ci95"] == list(wilson_interval(n * network["accuracy"], n))
        assert accuracy == f"{points(network['accuracy'], half_width(network['accuracy_ci95']))} %"


CHAINS = json.loads((DOCS / "results-cifar10" / cascade.FILE).read_text())


def test_the_readme_has_the_numbers_of_cascades():
    rows = [row[1:] for row in readme_results() if row[3].startswith("`chain")]
    assert len(rows) >= 3
    for flops, accuracy, name in rows:
        row = ship_chains.row_of(name.strip("`"), CHAINS)
        assert flops == f"{row['mega_flops']:.0f}"
        assert accuracy == f"{points(row['accuracy'], half_width(row['accuracy_ci95']))} %"


def test_the_readme_has_shares_of_a_whole_network_that_were_measured():
    _, text = README.read_text().split("The chains have ")
    stated = re.findall(r"(\d\d\.\d\d) % at\s+(\d+) %", text.split("\n\n")[0])
    whole = CHAINS["networks"]["resnet110-cifar10-distilled"]["mega_flops"]
    assert len(stated) == 3
    assert set(stated) <= {
        (f"{100 * row['accuracy']:.2f}", f"{100 * row['mega_flops'] / whole:.0f}") for row in CHAINS["rows"]
    }


def test_the_readme_has_differences_that_were_measured():
    pairs = stored_pairs("cifar10")["pairs"]
    pairs += [difference for row in CHAINS["rows"] for difference in row["over"].values()]
    measured = {points(abs(pair["accuracy"]), pair["ci95"]) for pair in pairs}
    stated = re.findall(r"(\d\.\d\d ± \d\.\d\d) points", README.read_text())
    assert stated and set(stated) <= measured


VALIDATION = {"0.14 ± 0.19", "0.82 ± 0.39"}  # controls on validation images, in no file


def seeds_on_cifar100() -> tuple[list[str], list[list[float]]]:
    """Lines of the table of seeds, and three leads per seed: over chance at both budgets, over a network."""
    lines, leads = [], []
    folder = DOCS / "results-cifar100"
    for seed, place in enumerate([folder, folder / "seed-1", folder / "seed-2"]):
        stored = json.loads((place / cascade.FILE).read_text())
        rows = stored["rows"][:2]
        assert [row["budget"] for row in rows] == [0.8, 1.0]
        (longer,) = [name for name in stored["networks"] if "resnet20" in name]
        over = [row["over"]["its routes at random"] for row in rows] + [rows[1]["over"][longer]]
        alone = [f"{100 * stored['networks'][name]['accuracy']:.2f}" for name in list(stored["networks"])[:2]]
        low, high, single = (points(pair["accuracy"], pair["ci95"], "+") for pair in over)
        chains = [f"{100 * row['accuracy']:.2f}" for row in rows]
        cells = [str(seed), *alone, chains[0], low, chains[1], high, single]
        lines.append(f"| {' | '.join(cells)} |")
        leads.append([pair["accuracy"] for pair in over])
    return lines, list(map(list, zip(*leads, strict=True)))


def test_the_page_of_results_has_every_seed_on_cifar100():
    lines, leads = seeds_on_cifar100()
    page = (DOCS / "results.md").read_text()
    assert all(f"\n{line}\n" in page for line in lines)
    sentences = " ".join(page.split())
    assert all(points(*mean_interval(each)) in sentences for each in leads)


def test_the_page_of_results_states_differences_that_were_measured():
    """In its sentences; its tables are those of the files."""
    found = set()
    for stored in (stored_pairs("cifar10"), stored_pairs("cifar100")):
        found |= {points(abs(pair["accuracy"]), pair["ci95"]) for pair in stored["pairs"]}
        networks = stored["networks"].values()
        found |= {points(one["accuracy"], half_width(one["accuracy_ci95"])) for one in networks}
    for file in results.parts_with_chains(DOCS / "results-cifar10").values():
        for row in json.loads(file.read_text())["rows"]:
            found |= {points(abs(pair["accuracy"]), pair["ci95"]) for pair in row["over"].values()}
    found |= {points(*mean_interval(leads)) for leads in seeds_on_cifar100()[1]}
    pattern = r"\d+\.\d\d ± \d\.\d\d"
    found |= set(re.findall(pattern, (DOCS / "results-cifar10" / "results.md").read_text()))  # over seeds
    lines = (DOCS / "results.md").read_text().splitlines()
    text = " ".join(line.strip() for line in lines if not line.strip().startswith("|"))
    stated = set(re.findall(pattern, text))
    assert len(stated) > 20 and stated - VALIDATION <= found


def test_the_page_of_training_has_the_lengths_of_presets():
    text = (DOCS / "training.md").read_text()
    for name in ("quick", "longer"):
        args = hybrid_reinforce.Args(**PRESETS[name])
        lengths = f"{args.sp_iterations} steps of SP, {args.iterations} of HRL, {args.tune_iterations} of tun"
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert lengths in line, line
    assert f"α = {hybrid_reinforce.Args().alpha}" in text


def test_the_page_of_policies_has_the_lengths_of_hrl():
    """HRL is the one agent of the comparison that does not run with its defaults."""
    longer, plain = PRESETS["longer"], PRESETS["plain"]
    text = " ".join((DOCS / "policies.md").read_text().split())
    assert f"{longer['iterations']} steps of HRL and {longer['tune_iterations']} of tuning without" in text
    assert f"has {plain['iterations']} and {plain['tune_iterations']} with one" in text


@pytest.mark.parametrize("added", [{}, {"n_images": 2_500}])
def test_intervals_of_older_rows_are_counted_anew(tmp_path, added):
    row = {"name": "HRL", "accuracy": 0.9, "accuracy_ci95": 0.3, **added}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row]}))
    (read,) = results.read(tmp_path)
    n = added.get("n_images", 10_000)
    assert (read["n_images"], read["accuracy_ci95"]) == (n, pytest.approx(wilson_interval(0.9 * n, n)))


def test_rows_that_were_not_run_are_named():
    page = (DOCS / "results.md").read_text()
    for name, row in ROWS.items():
        line = next((line for line in page.splitlines() if f"`{name}`" in line), None)
        assert (line is None) == (not row.not_run), name
        if line:
            assert line.endswith(f"| {row.not_run} |"), name


def test_the_table_of_results():
    assert (
        results.table(results.read(DOCS / "results-cifar10"))
        == (DOCS / "results-cifar10" / "results.md").read_text()
    )


@pytest.mark.parametrize("name, module", [
    ("throughput-cpu", throughput), ("training-cpu", training), ("scaling-cpu", scaling),
    ("compiling-pretraining-cpu", compiling), ("latency", latency), ("soak-cpu", soak), ("chains", chains),
])  # fmt: skip
def test_benchmarks(name, module):
    found = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text())
    assert f"<!-- {name} -->\n{module.table(found)}<!-- end of {name} -->" in measure.PAGE.read_text()


def test_the_page_of_gpus_is_that_of_its_file():
    """Made again by `python -m benchmarks.gpu --write`; what no card has run yet is named there."""
    found = json.loads(gpu.FILE.read_text()) if gpu.FILE.exists() else gpu.unmeasured()
    assert f"<!-- gpu-cuda -->\n{gpu.table(found)}<!-- end of gpu-cuda -->" in gpu.PAGE.read_text()


def test_the_page_of_information_has_its_tables():
    found = json.loads((DOCS / "benchmarks" / "information.json").read_text())
    assert information.table(found) in (DOCS / "information.md").read_text()


def test_deferral():
    found = json.loads((DOCS / "benchmarks" / "deferral.json").read_text())
    assert deferral.table(found) in (DOCS / "policies.md").read_text()


def test_chain_training():
    found = json.loads((DOCS / "benchmarks" / "chain_training.json").read_text())
    assert chain_training.table(found) in (DOCS / "policies.md").read_text()
    assert {row["seed"] for row in found["rows"]} == {None, 0, 1, 2}
