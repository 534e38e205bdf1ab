import json


def test_an_export_tells_what_was_written_and_how_to_use_it(mmbench, tiny_data, tmp_path):
    said = mmbench("export", "tiny", "mmrec", "--to", "toolbox/baby", "--data-dir", tiny_data)
    assert said.status == 0
    lines = said.out.splitlines()
    folder = tmp_path / "toolbox/baby"
    # 60 users with 7 training rows, 1 validation and 2 test rows each.
    assert lines[0] == (
        f"tiny: split imported written to {folder} (420 train, 60 valid, 120 test rows)"
    )
    assert "  baby.inter" in lines
    assert "  image_feat.npy" in lines
    assert any("python main.py -m MODEL -d baby" in line for line in lines)
    assert any("x_label (0 train, 1 valid, 2 test)" in line for line in lines)
    assert (folder / "baby.inter").read_text().splitlines()[0] == "userID\titemID\tx_label"
    back = mmbench("prepare", "back", "--source", folder, "--no-features", "--data-dir", "d")
    assert back.status == 0
    assert "recognised layout mmrec" in back.err
    fingerprints = [
        json.loads((root / "manifest.json").read_text())["fingerprint"]
        for root in (tiny_data / "tiny", tmp_path / "d/back")
    ]
    assert fingerprints[0] == fingerprints[1]


def test_facts_as_json(mmbench, tiny_data, tmp_path):
    said = mmbench(
        "export", "tiny", "recbole", "--to", "ml", "--features", "visual", "--data-dir", tiny_data,
        "--output-format", "json",
    )  # fmt: skip
    assert said.status == 0
    facts = json.loads(said.out)
    assert facts["folder"] == str(tmp_path / "ml")
    assert facts["rows"] == {"train": 420, "valid": 60, "test": 120, "excluded": 0}
    assert facts["features"] == ["visual__imported"]
    assert "ml.train.inter" in facts["files"]
    command = f"--dataset=ml --data_path={tmp_path} --config_files={tmp_path / 'ml/ml.yaml'}"
    assert command in facts["usage"][0]
    assert any("eval_args mode: full" in line for line in facts["usage"])


def test_bad_input_is_one_message(mmbench, tiny_data, tmp_path):
    def fails(*arguments):
        said = mmbench("export", *arguments, "--data-dir", tiny_data)
        assert said.status == 2
        assert "Traceback" not in said.err
        return " ".join(said.err.split())

    assert "unknown layout to export 'mmrek'. Did you mean \"mmrec\"?" in fails(
        "tiny", "mmrek", "--to", "x"
    )
    assert "unknown split of tiny 'imprted'. Did you mean \"imported\"?" in fails(
        "tiny", "mmrec", "--to", "x", "--split", "imprted"
    )
    assert "unknown feature set of tiny 'visual=clip'" in fails(
        "tiny", "mmrec", "--to", "x", "--features", "visual=clip"
    )
    assert "dataset 'demo' is not prepared under" in fails("demo", "mmrec", "--to", "x")
    assert "unknown dataset 'tinny'" in fails("tinny", "mmrec", "--to", "x")
    assert "Missing option '--to'" in fails("tiny", "mmrec")
    (tmp_path / "x").write_text("")
    assert "x is a file; name a folder" in fails("tiny", "mmrec", "--to", "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y/mine.txt").write_text("mine")
    assert "is not empty and no earlier export" in fails("tiny", "mmrec", "--to", "y", "--force")
    assert (tmp_path / "y/mine.txt").read_text() == "mine"
