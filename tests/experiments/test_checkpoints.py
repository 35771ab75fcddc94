"""Training states: what is saved comes back bit for bit, and a damaged or foreign file is named."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
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
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("stop_at", ["save_file", "replace"])
def test_interrupted_writing_leaves_the_old_state_or_none(tmp_path, tensors, monkeypatch, before, stop_at):
    path = tmp_path / "state"
    if before:
        save_state(path, tensors, {"step": 1})

    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints if stop_at == "save_file" else os, stop_at, stop)
        with pytest.raises(KeyboardInterrupt):
            save_state(path, {"w": torch.ones(2)}, {"step": 2})
    if before:
        assert load_state(path)[1] == {"step": 1}
    else:
        assert not path.exists()
    save_state(path, {"w": torch.ones(2)}, {"step": 2})
    assert load_state(path)[1] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_store_keeps_states_by_name(tmp_path):
    store, (net, optimizer) = checkpoints.FolderStore(tmp_path), small_net()
    assert (store.load("state", net), store.finished_steps()) == (None, 0)
    store.save("state", net, optimizer, {"step": 4, "best": 0.5})
    assert (store.load("state", net, optimizer), store.finished_steps()) == ({"step": 4, "best": 0.5}, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_no_path_and_no_pickle_inside(tmp_path, tensors):
    content = save_state(tmp_path / "state", tensors, {"step": 1}).read_bytes()
    assert str(tmp_path).encode() not in content
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(content)


def test_unwritable_folder_is_named(tmp_path, tensors):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file.state: cannot be written"):
        save_state(tmp_path / "file" / "state", tensors, {})


def with_info(**metadata):
    return lambda path: save_file({"w": torch.ones(2)}, path, metadata)


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "foreign": (lambda path: path.write_bytes(b"PK\x03\x04 a zip file, as torch.save writes"), "damaged"),
    "lost": (lambda path: path.unlink(), "no such file"),
    "no info": (lambda path: save_file({"w": torch.ones(2)}, path), "damaged"),
    "foreign info": (with_info(format="pt"), "damaged"),
    "truncated info": (with_info(info='{"step": 1, "ten'), "damaged"),
    "a list": (with_info(info="[1]"), "damaged"),
    "a number": (with_info(info="3"), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_states_are_named_in_one_line(tmp_path, tensors, damage):
    harm, message = DAMAGE[damage]
    path = save_state(tmp_path / "state.safetensors", tensors, {"step": 1})
    harm(path)
    with pytest.raises(InputError, match=rf"state\.safetensors: {message}") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


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
