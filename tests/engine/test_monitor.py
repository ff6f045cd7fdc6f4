import torch

from noisybsd.engine.monitor import EpochSums, SampleMonitor

LABELS = torch.tensor([0, 1, 2, 0])


def test_records_prediction_probability_and_margin_of_the_given_label() -> None:
    monitor = SampleMonitor(LABELS)
    index = torch.tensor([2, 0])
    first = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0, 4.0], [5.0, 0.0, 1.0]])
    monitor.record(index, first)
    monitor.record(index, second)
    assert monitor.predicted.tolist() == [0, 1, 2, 0]
    assert monitor.visits.tolist() == [2, 0, 2, 0]
    # sample 2, label 2: 2 - 3, then 4 - 1; sample 0, label 0: 5 - 1 twice
    assert monitor.margin_sum.tolist() == [8.0, 0.0, 2.0, 0.0]
    torch.testing.assert_close(monitor.given_prob[2], second[0].softmax(dim=0)[2])
    assert monitor.given_prob[1] == 1  # not visited: nothing speaks against the label


def test_notes_the_first_epoch_at_which_belief_left_the_label() -> None:
    monitor = SampleMonitor(LABELS)
    monitor.record_belief(torch.tensor([0, 2, 2, 0]), epoch=3)
    monitor.record_belief(
        torch.tensor([1, 1, 2, 0]), epoch=4
    )  # sample 1 comes back: still left at 3
    assert monitor.left_epoch.tolist() == [4, 3, -1, -1]


def test_sums_are_means_over_steps_and_start_again() -> None:
    sums = EpochSums(torch.device("cpu"))
    for step in range(4):
        sums.add(step, *torch.tensor([step, 1.0, 0.0, 0.5]))
    assert sums.means() == {
        "loss": 1.5,
        "classification_loss": 1.0,
        "contrastive_loss": 0.0,
        "train_accuracy": 0.5,
    }
    sums.reset()
    sums.add(4, *torch.tensor([7.0, 1.0, 0.0, 0.5]))
    assert sums.means()["loss"] == 7.0


def test_remembers_the_first_step_with_a_non_finite_loss() -> None:
    sums = EpochSums(torch.device("cpu"))
    fine, nan, inf = (torch.tensor([x, 0.0, 0.0, 0.0]) for x in (1.0, torch.nan, torch.inf))
    sums.add(10, *fine)
    assert sums.first_bad_step() is None
    sums.add(11, *inf)
    sums.add(12, *nan)
    sums.add(13, *fine)
    assert sums.first_bad_step() == 11
