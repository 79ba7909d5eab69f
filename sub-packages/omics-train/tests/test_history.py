from __future__ import annotations

import torch

from omics.train.history import History, RunningMeans


def test_means_are_over_counts_not_over_batches():
    means = RunningMeans()
    means.add({"loss": (torch.tensor(10.0), 5.0), "empty": (torch.tensor(0.0), 0.0)})
    means.add({"loss": (torch.tensor(2.0), torch.tensor(1)), "empty": (torch.tensor(0.0), 0.0)})
    assert means.read() == {"loss": 2.0}
    assert means.read() == {}


def test_the_caller_s_tensor_is_not_changed():
    means = RunningMeans()
    first = torch.tensor(1.0, dtype=torch.float64)
    means.add({"loss": (first, 1.0)})
    means.add({"loss": (torch.tensor(5.0), 1.0)})
    assert float(first) == 1.0


def test_history_is_csv_with_the_last_values_at_hand(tmp_path):
    history = History()
    history.add(4, 1, "train", {"loss": 0.5})
    history.add(8, 2, "train", {"loss": 0.25})
    history.add(8, 2, "validation", {"loss": 1.0})
    history.write(tmp_path / "history.csv")
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines == [
        "step,epoch,phase,term,value",
        "4,1,train,loss,0.5",
        "8,2,train,loss,0.25",
        "8,2,validation,loss,1",
    ]
    assert history.last("train") == {"loss": 0.25}
