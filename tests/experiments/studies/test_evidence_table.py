"""The study's table from raw values: means, seeds put together, intervals; compact files give the same table."""

import gzip
from pathlib import Path

import pytest

from memcomp.experiments import studies
from memcomp.experiments.studies import evidence_table
from memcomp.experiments.studies.evidence_table import COLUMNS, read, table


@pytest.fixture
def pairs(tmp_path):
    """Two rows, two seeds, three pairs; the second row is a tenth better; one pair hides nothing."""
    lines = ["kind,model,pair," + ",".join(COLUMNS.values())]
    for row, factor in (("host", 1.0), ("+ memory", 0.9)):
        for seed in (2, 5):
            for pair, error in enumerate((0.1, 0.2, 0.3)):
                hidden = "" if pair == 2 else f"{factor * error}"
                lines.append(f"same identity,{row} (seed {seed}),{pair},{error},{hidden},{error},0.5,0.5")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.csv"


def test_means_and_change(pairs):
    lines = table(read(pairs), "host").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][-1] == "hidden, against host"
    host, memory = cells[2:]
    assert host[:3] == ["host", "2", "0.2000"] and host[3] == "0.1500" and memory[3] == "0.1350"
    assert memory[-1] == "-10.0 % [-13.3, -6.7]"  # ± what the draw of two pairs changes


def test_a_compact_file_gives_the_same_table(pairs, tmp_path, capsys):
    evidence_table.main([str(pairs)])
    before = capsys.readouterr().out
    evidence_table.main([str(pairs), "--keep", str(tmp_path / "kept.csv.gz")])
    evidence_table.main([str(tmp_path / "kept.csv.gz")])
    assert capsys.readouterr().out == before and "+ memory" in before
    assert "host (seed 5)" in gzip.decompress((tmp_path / "kept.csv.gz").read_bytes()).decode()  # which seed it was


def test_of_real_clips_all_pixels_decide(tmp_path):
    lines = ["kind,model,pair,standard.l1,standard.psnr,standard.ssim"]
    for row, factor in (("host", 1.0), ("+ memory", 0.9)):
        lines += [f"same identity,{row} (seed 1),{pair},{factor * 0.1 * (pair + 1)},20,0.5" for pair in range(3)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    header, _, _, memory = table(read(tmp_path / "pairs.csv"), "host").splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("row", "seeds", "L1 ↓", "SSIM ↑", "PSNR ↑", "L1, against host")
    ]
    assert "-10.0 %" in memory and "20.0000" in memory


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x1f\x8b no", b"\xff\xfe"])
def test_a_file_of_something_else_is_an_error_of_one_line(content, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(SystemExit):
        evidence_table.main([str(tmp_path / "pairs.csv")])
    assert "expected the values that `memcomp benchmark` writes" in capsys.readouterr().err


def test_without_a_baseline_it_is_the_first_row_but_for_the_copy(pairs, capsys):
    header, *lines = pairs.read_text().splitlines()
    copies = [f"same identity,copy of the source,{pair},0.4,0.4,0.4,0.5,0.5" for pair in range(3)]
    pairs.write_text("\n".join([header, *copies, *lines]) + "\n")
    evidence_table.main([str(pairs)])
    assert "hidden, against host" in capsys.readouterr().out


def test_what_has_one_seed_is_compared_with_several(pairs):
    with pairs.open("a") as file:
        for pair, error in enumerate((0.2, 0.4, 0.6)):
            file.write(f"same identity,copy of the source,{pair},{error},{error},{error},0.5,0.5\n")
    assert "+100.0 % [" in table(read(pairs), "host").splitlines()[-1]


def test_seeds_are_compared_by_their_number(pairs):
    content = pairs.read_text()
    whole = table(read(pairs), "host").splitlines()[-1]
    header, *lines = content.splitlines()
    host, memory = lines[:6], lines[6:]
    pairs.write_text("\n".join([header, *host, *memory[3:], *memory[:3]]) + "\n")  # its seeds the other way round
    assert table(read(pairs), "host").splitlines()[-1] == whole
    pairs.write_text("\n".join([header, *host, *memory[3:]]) + "\n")
    assert "% [-13.3, -6.7] (1 seed)" in table(read(pairs), "host").splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "baseline"),
    [
        ("fomm", "host"),
        ("tpsm", "host"),
        ("whole_fomm", "host"),
        ("taught_fomm", "host"),
        ("longer_fomm", "host"),
        ("taught_tpsm", "host"),
        ("scratch_fomm", "host"),
        ("scratch_fomm", "host, as many operations"),
        ("scratch_tpsm", "host, as many operations"),
        ("scratch_tpsm_near", "host"),
        ("scratch_tpsm_near", "host, as many operations"),
        ("tpsm_near", "host"),
        ("tpsm_near", "host, as many operations"),
        ("tpsm_near", "host, as many parameters"),
        ("fomm", "host, one block deeper"),
        ("fomm", "host, as many parameters"),
        ("fomm_published", "host, as many operations"),
        ("clips_fomm", "host"),
        ("clips_fomm", "host, as many operations"),
        ("clips_tpsm", "host"),
        ("clips_tpsm", "host, as many operations"),
        ("fields", "paper"),
        ("fields", "read by place"),
    ],
)
def test_the_values_of_the_study_are_in_the_repository(file, baseline, capsys):
    kept = Path(studies.__file__).parents[1] / "results" / f"evidence_{file}_pairs.csv.gz"
    evidence_table.main([str(kept), "--baseline", baseline])
    shown = capsys.readouterr().out
    page = kept.with_name("evidence.md").read_text("utf-8")
    for line in shown.strip().splitlines()[2:]:
        name, *_, change = (cell.strip() for cell in line.strip("|").split("|"))
        assert any(name in text and change in text for text in page.splitlines()), line
