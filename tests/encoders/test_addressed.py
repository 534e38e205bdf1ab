from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbench.encoders import addressed
from mmbench.encoders.addressed import find_addressed, place_of, stated_hash
from mmbench.encoders.neural import Hub, Options
from mmbench.errors import DataError


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Hub, Path]:
    """Weights whose address ends with their hash, and the file; torch's folder is a new one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.save({"a": torch.ones(2)}, tmp_path / "it.pth")
    digest = hashlib.sha256((tmp_path / "it.pth").read_bytes()).hexdigest()
    address = f"https://example.invalid/models/it-{digest[:8]}.pth"
    return Hub("torchvision/it", address=address), tmp_path / "it.pth"


def test_what_is_not_here_is_named_with_its_address_and_place(saved: tuple[Hub, Path]) -> None:
    hub, _ = saved
    with pytest.raises(DataError, match=r"E401 torchvision/it .*checkpoints/it-.*--download") as e:
        find_addressed(hub, Options())
    assert hub.address in str(e.value)
    assert "--weights FILE" in str(e.value)


def test_a_file_is_taken_from_its_place_or_from_the_user(saved: tuple[Hub, Path]) -> None:
    hub, file = saved
    assert find_addressed(hub, Options(weights=file)).files == (file,)
    place_of(hub).parent.mkdir(parents=True)
    place_of(hub).write_bytes(file.read_bytes())
    assert find_addressed(hub, Options()).digest.startswith(stated_hash(hub))
    place_of(hub).write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"E404 .*not what its name says"):
        find_addressed(hub, Options())


def test_a_file_is_fetched_compared_and_put_in_its_place(
    saved: tuple[Hub, Path], serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, file = saved
    name = place_of(hub).name
    site = serve({f"/{name}": file.read_bytes()})
    # Plain http is refused; the rest is the same.
    with pytest.raises(DataError, match=r"E402 http://.*no https"):
        find_addressed(Hub("x", address=f"{site.url}/{name}"), Options(), fetch=True)
    fetch = addressed.torch.hub.download_url_to_file
    monkeypatch.setattr(
        addressed.torch.hub,
        "download_url_to_file",
        lambda url, *more, **named: fetch(f"{site.url}/{url.rpartition('/')[2]}", *more, **named),
    )
    assert find_addressed(hub, Options(), fetch=True).files == (place_of(hub),)
    other = Hub("torchvision/it", address="https://example.invalid/it-00000000.pth")
    with pytest.raises(DataError, match=r"E402 .*was not fetched"):
        find_addressed(other, Options(), fetch=True)
    assert not place_of(other).exists()


def test_offline_nothing_is_fetched(
    saved: tuple[Hub, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressed, "is_offline", lambda: True)
    with pytest.raises(DataError, match=r"E401 .*HF_HUB_OFFLINE is set"):
        find_addressed(saved[0], Options(), fetch=True)
