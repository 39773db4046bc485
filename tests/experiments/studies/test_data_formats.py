"""The study of ways to keep clips writes and reads each of them, and measures what it says."""

import json

from memcomp.experiments.studies import data_formats


def test_every_way_is_written_read_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_formats, "DISTANCES", (6, 1))
    words = ["--clips", "2", "--frames", "12", "--size", "64", "--pairs", "3", "--rounds", "1"]
    rows = data_formats.main([*words, "--output", str(tmp_path / "rows.json")])
    told = json.loads((tmp_path / "rows.json").read_text())
    assert told["rows"] == rows and (told["clips"], told["frames"]) == (2, 24)
    names = [row["way"] for row in rows]
    assert names[:3] == ["H.264, a key frame every 6", "H.264, a key frame every 1", "JPEG folders"]
    assert all(row["psnr"] > 28 and row["cpu_ms"] > 0 and row["first_ms"] > 0 for row in rows)
    assert rows[0]["megabytes"] < rows[2]["megabytes"]
    assert capsys.readouterr().out.count(" dB ") == len(rows)
