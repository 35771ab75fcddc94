"""Training states: what is saved comes back bit for bit, and a damaged or foreign file is named."""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest
import torch
from torch import nn

from cxrclip.errors import InputError
from cxrclip.experiments import checkpoints
from cxrclip.experiments.checkpoints import load_optimizer_tensors, load_state, optimizer_tensors, save_state


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {"w": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "count": torch.tensor(7), "none": torch.zeros(0),
            "turned": torch.randn(2, 3).T}


def small_net():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return net, torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        net(inputs).square().sum().backward()
        optimizer.step()


def test_round_trip(tmp_path, tensors):
    save_state(tmp_path / "a" / "state", tensors, {"step": 3, "best": None})
    loaded, info = load_state(tmp_path / "a" / "state")
    assert info == {"step": 3, "best": None}
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype
               for name in tensors)


def test_a_newer_state_replaces_the_older_and_leaves_nothing_behind(tmp_path, tensors):
    for step in range(3):
        save_state(tmp_path / "state", {"w": tensors["w"] + step}, {"step": step})
    loaded, info = load_state(tmp_path / "state")
    assert info["step"] == 2
    assert torch.equal(loaded["w"], tensors["w"] + 2)
    assert len(list((tmp_path / "state").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("stop_at", ["save_file", "replace", "rename"])
def test_interrupted_writing_leaves_the_old_state_or_none(tmp_path, tensors, monkeypatch, before, stop_at):
    folder = tmp_path / "state"
    if before:
        save_state(folder, tensors, {"step": 1})
    if before and stop_at == "rename":
        pytest.skip("only the first state is renamed as a folder")

    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints if stop_at == "save_file" else os, stop_at, stop)
        with pytest.raises(KeyboardInterrupt):
            save_state(folder, {"w": torch.ones(2)}, {"step": 2})
    if before:
        assert load_state(folder)[1] == {"step": 1}
    else:
        assert not folder.exists()
    save_state(folder, {"w": torch.ones(2)}, {"step": 2})
    assert load_state(folder)[1] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_path_and_no_pickle_inside(tmp_path, tensors):
    save_state(tmp_path / "state", tensors, {"step": 1})
    for file in (tmp_path / "state").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(file.read_bytes())


def test_unwritable_folder_is_named(tmp_path, tensors):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file.state: the state cannot be written"):
        save_state(tmp_path / "file" / "state", tensors, {})


def truncate(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])


def foreign_tensors(folder):
    next(folder.glob("*.safetensors")).write_bytes(b"PK\x03\x04 a zip file, as torch.save writes")


def point_outside(folder):
    (folder / "info.json").write_text(json.dumps({"tensors": "../other.safetensors"}))


DAMAGE = {
    "truncated tensors": (truncate, r"tensors-\w+\.safetensors: damaged"),
    "empty tensors": (lambda folder: next(folder.glob("*.safetensors")).write_bytes(b""), r"\.safetensors: damaged"),
    "foreign tensors": (foreign_tensors, r"\.safetensors: damaged"),
    "lost tensors": (lambda folder: next(folder.glob("*.safetensors")).unlink(), r"\.safetensors: no such file"),
    "truncated info": (lambda folder: (folder / "info.json").write_text('{"step": 1, "ten'), r"info\.json: damaged"),
    "foreign info": (lambda folder: (folder / "info.json").write_text('{"step": 1}'), r"info\.json: damaged"),
    "binary info": (lambda folder: (folder / "info.json").write_bytes(b"\xff\xfe\x00"), r"info\.json: damaged"),
    "a list": (lambda folder: (folder / "info.json").write_text("[1]"), r"info\.json: damaged"),
    "not a name": (lambda folder: (folder / "info.json").write_text('{"tensors": 3}'), r"info\.json: damaged"),
    "outside": (point_outside, r"info\.json: damaged"),
    "no info": (lambda folder: (folder / "info.json").unlink(), r"info\.json: no such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_states_are_named_in_one_line(tmp_path, tensors, damage):
    harm, message = DAMAGE[damage]
    save_state(tmp_path / "state", tensors, {"step": 1})
    harm(tmp_path / "state")
    with pytest.raises(InputError, match=message) as caught:
        load_state(tmp_path / "state")
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing.info\.json: no such file"):
        load_state(tmp_path / "nothing")


def test_optimizer_continues_bitwise(tmp_path):
    whole, optimizer = small_net()
    train(whole, optimizer, range(9))
    first, optimizer = small_net()
    train(first, optimizer, range(5))
    weights = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    save_state(tmp_path / "state", weights | optimizer_tensors(optimizer), {"step": 5})

    second, optimizer = small_net()
    tensors, _ = load_state(tmp_path / "state")
    second.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    load_optimizer_tensors(optimizer, tensors)
    train(second, optimizer, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))

    cold, optimizer = small_net()
    cold.load_state_dict(first.state_dict())
    train(cold, optimizer, range(5, 9))
    assert not torch.equal(cold[0].weight, whole[0].weight), "the moments must matter here"


def test_loaded_moments_are_no_alias():
    net, optimizer = small_net()
    train(net, optimizer, range(2))
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    kept = copy.deepcopy(tensors)
    load_optimizer_tensors(optimizer, tensors)
    train(net, optimizer, range(2, 4))
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)


def test_fresh_optimizer_has_an_empty_state():
    _, optimizer = small_net()
    assert optimizer_tensors(optimizer) == {}
    load_optimizer_tensors(optimizer, {"model.w": torch.ones(1)})
    assert optimizer.state_dict()["state"] == {}


def test_state_of_another_model_is_refused():
    net, optimizer = small_net()
    train(net, optimizer, range(1))
    other = nn.Linear(4, 8)
    with pytest.raises(InputError, match="parameter 2 does not fit this model"):
        load_optimizer_tensors(torch.optim.AdamW(other.parameters()), optimizer_tensors(optimizer))
    wider = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    with pytest.raises(InputError, match="parameter 0 does not fit this model"):
        load_optimizer_tensors(torch.optim.AdamW(wider.parameters()), optimizer_tensors(optimizer))
