"""A saved state of a training that is damaged, or of another recipe, counts as absent; training begins at step 0."""

import pytest


class Setting:
    """A tiny training: two weights, an optimizer after one step, a schedule."""

    def __init__(self, size: int = 3):
        import torch
        from transformers import get_scheduler

        torch.manual_seed(0)
        self.trained = {"a": torch.nn.Parameter(torch.ones(size)), "b": torch.nn.Parameter(torch.zeros(2, size))}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=0.1)
        self.schedule = get_scheduler("linear", self.optimizer, 0, 10)

    def step(self) -> None:
        """Take a step of the optimizer."""
        sum(value.sum() for value in self.trained.values()).backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def parts(self) -> dict:
        """Return what has a state beside the weights."""
        return {"optimizer": self.optimizer, "schedule": self.schedule}

    def values(self) -> list:
        """Return the weights as plain numbers."""
        return [value.tolist() for value in self.trained.values()]


@pytest.fixture
def saved(tmp_path):
    """A state in the folder, saved by the recipe A."""
    from quantune.finetunings.training import state

    setting = Setting()
    setting.step()
    state.save(tmp_path, state.Progress(step=1), setting.trained, setting.parts(), "A")
    return setting


def restore(folder, setting, made_by="A"):
    """Restore the state of a folder."""
    from quantune.finetunings.training import state

    return state.restore(folder, setting.trained, setting.parts(), made_by)


def other_torch_file(path) -> None:
    """Write a file of torch that is no state."""
    import torch

    torch.save({"progress": 3}, path)


def flipped(path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a flipped bit": flipped,
    "of another program": other_torch_file,
}


def test_a_saved_state_is_restored(saved, tmp_path):
    setting = Setting()
    assert restore(tmp_path, setting).step == 1
    assert setting.values() == saved.values()
    assert setting.optimizer.state_dict()["state"][0]["step"] == 1
    assert setting.schedule.get_last_lr() == saved.schedule.get_last_lr()


@pytest.mark.parametrize("damage", [*DAMAGE.values()], ids=[*DAMAGE])
def test_a_damaged_state_counts_as_absent(saved, tmp_path, capsys, damage):
    damage(tmp_path / "state.pt")
    setting, before = Setting(), Setting().values()
    assert restore(tmp_path, setting) is None
    assert setting.values() == before and setting.optimizer.state_dict()["state"] == {}
    assert "cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("size", [3, 4])
def test_a_state_of_another_recipe_counts_as_absent(saved, tmp_path, capsys, size):
    setting, before = Setting(size), Setting(size).values()
    assert restore(tmp_path, setting, made_by="B") is None
    assert setting.values() == before
    assert "another recipe saved it" in capsys.readouterr().out
