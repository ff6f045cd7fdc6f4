from __future__ import annotations

import logging
import math
import multiprocessing
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noisybsd.errors import UserError
from noisybsd.models import bank as bank_module
from noisybsd.models.bank import ENGINES, FeatureBank, Neighbours, knn_accuracy, search, vote

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


def _clusters(count: int, dim: int = 16, groups: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors (count,dim) around `groups` centres, and their group (count,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(groups, (count,), generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    return F.normalize(centres[labels] + 0.3 * noise, dim=1), labels


def _slow_search(bank: Tensor, k: int, queries: Tensor | None) -> tuple[Tensor, list[set[int]]]:
    similarity, sets = [], []
    for q, query in enumerate(bank if queries is None else queries):
        ranked = sorted(
            (-float(query.double() @ row.double()), j)
            for j, row in enumerate(bank)
            if queries is not None or j != q
        )[:k]
        similarity.append([-s for s, _ in ranked])
        sets.append({j for _, j in ranked})
    return torch.tensor(similarity), sets


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_queries", [False, True])
@pytest.mark.parametrize("engine", ["exact", "torch", "auto"])
def test_search_matches_a_slow_loop(engine: str, with_queries: bool, device: str) -> None:
    bank, _ = _clusters(120)
    queries = _clusters(20, seed=1)[0] if with_queries else None
    expected, sets = _slow_search(bank, 5, queries)
    found = search(
        bank.to(device), 5, queries=None if queries is None else queries.to(device), engine=engine
    )
    assert found.similarity.dtype == torch.float32 and found.index.dtype == torch.int64
    assert found.similarity.device.type == found.index.device.type == device
    torch.testing.assert_close(found.similarity.cpu(), expected, rtol=0, atol=1e-5)
    assert [set(row) for row in found.index.tolist()] == sets


@pytest.mark.parametrize("device", DEVICES)
def test_engines_agree(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bank_module.BLOCK, device, 100_000)  # so that "torch" needs many blocks
    monkeypatch.setattr(bank_module, "RECALL_TARGET", 1.0)
    bank = _clusters(3000)[0].to(device)
    queries = _clusters(200, seed=1)[0].to(device)
    exact, ivf, matmul = (
        search(bank, 10, queries=queries, engine=e) for e in ENGINES if e != "auto"
    )
    torch.testing.assert_close(matmul.similarity, exact.similarity, rtol=0, atol=1e-5)
    assert torch.equal(matmul.index.sort().values, exact.index.sort().values)
    same = (ivf.index.sort().values == exact.index.sort().values).all(dim=1)
    assert same.float().mean() > 0.9  # the sample of queries had all; others may have lost some
    torch.testing.assert_close(ivf.similarity[same], exact.similarity[same], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_ivf_reaches_and_logs_its_recall(device: str, caplog: pytest.LogCaptureFixture) -> None:
    bank = _clusters(4000)[0].to(device)
    with caplog.at_level(logging.INFO, logger="noisybsd.models.bank"):
        ivf = search(bank, 10, engine="ivf")
    exact = search(bank, 10, engine="torch")
    hits = [
        len(set(a) & set(b)) for a, b in zip(ivf.index.tolist(), exact.index.tolist(), strict=True)
    ]
    recall = sum(hits) / exact.index.numel()
    visited, cells, logged = re.findall(r"(\d+) of (\d+) cells visited, recall (\S+)", caplog.text)[
        0
    ]
    assert int(visited) < int(cells)  # else the search was exact
    assert float(logged) >= 0.98
    assert recall == pytest.approx(float(logged), abs=0.01)


def test_ivf_visits_more_cells_where_recall_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bank = F.normalize(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    visited = []
    for target in (0.3, 0.98):
        monkeypatch.setattr(bank_module, "RECALL_TARGET", target)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="noisybsd.models.bank"):
            search(bank, 10, engine="ivf")
        visited.append(int(re.findall(r"(\d+) of \d+ cells", caplog.text)[0]))
    assert visited[0] < visited[1]


def test_ivf_completes_queries_whose_cells_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "RECALL_TARGET", 0.0)  # visit one cell whatever it misses
    bank = _clusters(500)[0]
    k = 300
    found = search(bank, k, engine="ivf")
    assert (found.index >= 0).all()
    torch.testing.assert_close(
        found.similarity, search(bank, k, engine="exact").similarity, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 60])
def test_ivf_on_few_rows(count: int) -> None:
    bank = _clusters(count)[0]
    found = search(bank, 1, engine="ivf")
    assert torch.equal(found.index, search(bank, 1, engine="exact").index)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
def test_self_is_never_its_own_neighbour_among_duplicates(engine: str, device: str) -> None:
    distinct = _clusters(100)[0].to(device)
    bank = distinct.repeat(9, 1)  # every vector nine times; k + 1 = 6 of them tie
    found = search(bank, 5, engine=engine)
    rows = torch.arange(900, device=device).unsqueeze(1)
    assert not (found.index == rows).any()
    assert (found.index % 100 == rows % 100).all()  # duplicates, all five
    assert all(len(set(row)) == 5 for row in found.index.tolist())
    torch.testing.assert_close(found.similarity, torch.ones(900, 5, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
def test_identical_features_leave_all_rows_their_neighbours(engine: str, device: str) -> None:
    bank = F.normalize(torch.ones(50, 4, device=device), dim=1)
    found = search(bank, 49, engine=engine)
    others = [sorted(set(range(50)) - {row}) for row in range(50)]
    assert found.index.sort().values.tolist() == others


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
def test_search_is_deterministic(engine: str, device: str) -> None:
    bank = _clusters(1500)[0].to(device)
    first, second = (search(bank, 7, engine=engine) for _ in range(2))
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.similarity, second.similarity)


def test_auto_searches_large_banks_approximately(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def named(name: str) -> Callable[[Tensor, Tensor, int], Neighbours]:
        return lambda *arguments: calls.append(name) or ENGINES["torch"](*arguments)

    monkeypatch.setattr(bank_module, "_exact", named("exact"))
    monkeypatch.setattr(bank_module, "_ivf", named("ivf"))
    monkeypatch.setitem(bank_module.EXACT_LIMIT, "cpu", 100)
    for count in (100, 101):
        search(_clusters(count)[0], 3)
    assert calls == ["exact", "ivf"]


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("faiss", [SimpleNamespace(), SimpleNamespace(get_num_gpus=lambda: 1)])
def test_faiss_without_its_gpu_part_uses_no_gpu(
    faiss: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "_faiss", lambda: faiss)
    assert not bank_module._faiss_has_gpus()
    faiss.StandardGpuResources, faiss.get_num_gpus = object, lambda: 0
    assert not bank_module._faiss_has_gpus()
    faiss.get_num_gpus = lambda: 1
    assert bank_module._faiss_has_gpus()


@pytest.mark.parametrize(("engine", "used"), [("exact", "torch searches"), ("ivf", "on the CPU")])
def test_on_a_gpu_that_faiss_cannot_use_another_engine_serves_and_says_so(
    engine: str, used: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bank_module, "_faiss_has_gpus", lambda: False)
    monkeypatch.setattr(bank_module, "RECALL_TARGET", 1.0)
    bank = _clusters(300)[0]
    with caplog.at_level(logging.WARNING, logger="noisybsd.models.bank"):
        found = ENGINES[engine](bank.as_subclass(OnGpu), bank[:20].as_subclass(OnGpu), 5)
    assert used in caplog.text
    expected = search(bank, 5, queries=bank[:20], engine="torch")
    torch.testing.assert_close(
        found.similarity.as_subclass(Tensor), expected.similarity, rtol=0, atol=1e-5
    )


def test_auto_prefers_torch_on_a_gpu_until_the_bank_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for name in ("torch", "exact", "ivf"):
        monkeypatch.setattr(bank_module, f"_{name}", lambda *_, name=name: calls.append(name))
    monkeypatch.setitem(bank_module.EXACT_LIMIT, "cpu", 100)  # where these tensors really are
    for count in (100, 101):
        bank_module._auto(_clusters(count)[0].as_subclass(OnGpu), _clusters(3)[0], 1)
    assert calls == ["torch", "ivf"]


def test_ivf_warns_of_a_recall_that_it_cannot_reach(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bank_module, "MOST_CELLS", 1)
    bank = F.normalize(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    search(bank, 10, engine="ivf")
    assert re.search(r"1 of \d+ cells visited, recall 0\.", caplog.text)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_search_has_full_precision_and_leaves_the_setting_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def engine(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
        seen.append(torch.get_float32_matmul_precision())
        return Neighbours(torch.zeros(3, k), torch.zeros(3, k, dtype=torch.int64))

    monkeypatch.setitem(bank_module.ENGINES, "torch", engine)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        search(torch.eye(3), 1, engine="torch")
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "high")
    finally:
        torch.set_float32_matmul_precision(before)


def test_search_ignores_autocast_and_takes_bf16() -> None:
    bank = _clusters(60)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = search(bank, 3, engine="torch")
    assert torch.equal(found.similarity, search(bank, 3, engine="torch").similarity)
    rounded = bank.bfloat16()
    found = search(rounded, 3, queries=rounded, engine="exact")
    expected = search(rounded.float(), 3, queries=rounded.float(), engine="exact")
    assert torch.equal(found.similarity, expected.similarity)


def _use_faiss(queue: multiprocessing.Queue[str]) -> None:
    try:
        bank_module._faiss()
    except RuntimeError as error:
        queue.put(str(error))
    else:
        queue.put("faiss is there")


def _answer_of_a_child(start: str) -> str:
    bank_module._faiss()
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=_use_faiss, args=(queue,), daemon=True)
    child.start()
    answer: str = queue.get(timeout=60)
    child.join(timeout=60)
    return answer


def test_faiss_refuses_a_forked_child() -> None:
    assert "neighbours.engine=torch" in _answer_of_a_child("fork")


@pytest.mark.slow  # a fresh interpreter imports torch
def test_faiss_serves_a_spawned_child() -> None:
    assert _answer_of_a_child("spawn") == "faiss is there"


# --- the bank ---


def test_write_keeps_the_last_embedding() -> None:
    bank = FeatureBank(num_samples=10, embedding_dim=3)
    generator = torch.Generator().manual_seed(0)
    last: dict[int, Tensor] = {}
    for _ in range(5):
        index = torch.randperm(10, generator=generator)[:4]
        z = F.normalize(torch.randn(4, 3, generator=generator), dim=1).requires_grad_()
        bank.write(index, z)
        last.update(zip(index.tolist(), z.detach(), strict=True))
    assert not bank.features.requires_grad
    assert set(bank.filled.nonzero().flatten().tolist()) == last.keys()
    for row in range(10):
        assert torch.equal(bank.features[row], last.get(row, torch.zeros(3)))


def test_write_takes_bf16() -> None:
    bank = FeatureBank(num_samples=2, embedding_dim=2)
    bank.write(torch.tensor([1]), torch.tensor([[0.5, -0.5]], dtype=torch.bfloat16))
    assert bank.features.tolist() == [[0, 0], [0.5, -0.5]]


def test_half_precision_finds_the_neighbours_of_what_a_bf16_network_says() -> None:
    """As wide as the features of a network without a projection head; they have bf16's 8 bits."""
    embeddings, labels = _clusters(2000, dim=512)
    queries, theirs = _clusters(300, dim=512, seed=1)
    embeddings, queries = (F.normalize(z.bfloat16().float(), dim=1) for z in (embeddings, queries))
    found = {}
    for dtype in (torch.float32, torch.float16):
        bank = FeatureBank(2000, 512, dtype)
        bank.write(torch.arange(2000), embeddings)
        assert bank.features.dtype == dtype
        found[dtype] = bank.search(10, queries=queries, engine="torch")
    full, half = found.values()
    assert half.similarity.dtype == torch.float32
    # other neighbours are found only where they are as near, to a thousandth; bf16 itself is worse
    really = (embeddings[half.index] * queries[:, None]).sum(dim=2)
    torch.testing.assert_close(really, full.similarity, rtol=0, atol=1e-3)
    assert knn_accuracy(labels, half, theirs) == knn_accuracy(labels, full, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_write_does_not_wait_for_the_gpu() -> None:
    bank = FeatureBank(num_samples=10, embedding_dim=3).cuda()
    index, z = torch.tensor([7, 2], device="cuda"), torch.rand(2, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        bank.write(index, z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(bank.features[index], z)
    assert bank.filled.nonzero().flatten().tolist() == [2, 7]


def test_state_dict_round_trip() -> None:
    bank, copy = FeatureBank(6, 4), FeatureBank(6, 4)
    bank.write(torch.tensor([5, 1, 2]), _clusters(3, dim=4)[0])
    copy.load_state_dict(bank.state_dict())
    assert torch.equal(copy.features, bank.features)
    assert torch.equal(copy.filled, bank.filled)
    assert bank.state_dict().keys() == {"features", "filled"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ENGINES)
def test_unfilled_rows_have_no_neighbours_and_are_none(engine: str, device: str) -> None:
    features = _clusters(200)[0].to(device)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:150].to(device)
    bank = FeatureBank(200, 16).to(device)
    bank.write(rows, features[rows])
    found = bank.search(4, engine=engine)
    assert found.index.shape == found.similarity.shape == (200, 4)
    assert (found.index[~bank.filled] == -1).all()
    assert (found.similarity[~bank.filled] == 0).all()
    expected = search(features[rows], 4, engine="torch")
    torch.testing.assert_close(found.similarity[rows], expected.similarity, rtol=0, atol=1e-5)
    assert torch.equal(found.index[rows].sort().values, rows[expected.index].sort().values)


def test_bank_search_with_queries_gives_rows_of_the_bank() -> None:
    features, _ = _clusters(30)
    bank = FeatureBank(60, 16)
    bank.write(torch.arange(30, 60), features)
    found = bank.search(3, queries=features[:5])
    assert found.index[:, 0].tolist() == [30, 31, 32, 33, 34]  # itself: queries are not excluded
    assert (found.index >= 30).all()


@pytest.mark.parametrize("filled", [0, 1, 3])
def test_fewer_filled_rows_than_k_leave_columns_empty(filled: int) -> None:
    bank = FeatureBank(10, 16)
    bank.write(torch.arange(filled), _clusters(filled)[0])
    found = bank.search(5)
    others = max(filled - 1, 0)
    assert ((found.index >= 0).sum(dim=1) == torch.where(bank.filled, others, 0)).all()
    assert (found.index[:filled, :others] >= 0).all()
    queried = bank.search(5, queries=_clusters(2)[0])
    assert ((queried.index >= 0).sum(dim=1) == filled).all()


def test_full_bank_searches_like_the_function() -> None:
    features, _ = _clusters(40)
    bank = FeatureBank(40, 16)
    bank.write(torch.arange(40), features)
    torch.testing.assert_close(tuple(bank.search(6)), tuple(search(features, 6)))


# --- vote and accuracy ---


def _neighbours() -> tuple[Neighbours, Tensor]:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(12, (7, 4), generator=generator)
    similarity = torch.rand(7, 4, generator=generator) * 2 - 1
    index[2] = -1
    index[3, 2:] = -1
    similarity[index < 0] = 0
    return Neighbours(similarity, index), torch.rand(12, 5, generator=generator).softmax(dim=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [0.002, 0.07, 1.0, math.inf])
def test_vote_matches_a_slow_loop(temperature: float, device: str) -> None:
    neighbours, targets = _neighbours()
    expected = torch.zeros(7, 5, dtype=torch.float64)
    for q in range(7):
        pairs = [
            (math.exp(float(s) / temperature), int(j))
            for s, j in zip(neighbours.similarity[q], neighbours.index[q], strict=True)
            if j >= 0
        ]
        for weight, j in pairs:
            expected[q] += weight * targets[j].double() / sum(weight for weight, _ in pairs)
    on_device = Neighbours(*(x.to(device) for x in neighbours))
    actual = vote(targets.to(device), on_device, temperature).cpu()
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-6)
    sums = torch.ones(7)
    sums[2] = 0  # no neighbours: no evidence
    torch.testing.assert_close(actual.sum(dim=1), sums)


def test_infinite_temperature_is_the_plain_mean() -> None:
    neighbours = Neighbours(torch.tensor([[0.9, 0.1]]), torch.tensor([[2, 0]]))
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert vote(targets, neighbours, math.inf).tolist() == [[0.5, 0.5]]


def test_vote_of_integer_one_hot_labels() -> None:
    neighbours = Neighbours(torch.tensor([[0.3, 0.3]]), torch.tensor([[0, 1]]))
    assert vote(F.one_hot(torch.tensor([2, 0])), neighbours, 0.1).tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("device", DEVICES)
def test_vote_of_classes_is_that_of_one_hot_labels(device: str) -> None:
    neighbours = Neighbours(*(x.to(device) for x in _neighbours()[0]))
    labels = torch.tensor([0, 4, 1, 2, 0, 3, 4, 1, 1, 0, 2, 3], device=device)
    one_hot = vote(F.one_hot(labels), neighbours, 0.3)
    torch.testing.assert_close(vote(labels, neighbours, 0.3), one_hot)
    queries = torch.tensor([0, 1, 2, 3, 4, 0, 1], device=device)
    assert knn_accuracy(labels, neighbours, queries) == knn_accuracy(
        F.one_hot(labels), neighbours, queries
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_vote_names_a_bad_temperature(temperature: float) -> None:
    neighbours, targets = _neighbours()
    with pytest.raises(UserError, match=r"^temperature: got"):
        vote(targets, neighbours, temperature)


def test_knn_accuracy_is_one_on_separate_clusters() -> None:
    features, labels = _clusters(300, dim=64)
    queries, query_labels = _clusters(50, dim=64, seed=1)
    targets = F.one_hot(labels, 10)
    assert knn_accuracy(targets, search(features, 5, queries=queries), query_labels) == 1.0
    assert knn_accuracy(targets, search(features, 5), labels) == 1.0
    wrong = (query_labels + 1) % 10
    wrong[:10] = query_labels[:10]
    assert knn_accuracy(targets, search(features, 5, queries=queries), wrong) == pytest.approx(0.2)


def test_knn_accuracy_leaves_out_queries_without_neighbours() -> None:
    targets = torch.eye(2)
    index = torch.tensor([[0], [1], [-1]])
    neighbours = Neighbours(torch.zeros(3, 1), index)
    # The third would be right by chance: its empty vote has argmax 0.
    assert knn_accuracy(targets, neighbours, torch.tensor([0, 0, 0])) == 0.5
    assert math.isnan(
        knn_accuracy(targets, Neighbours(torch.zeros(3, 1), index * 0 - 1), index[:, 0])
    )


# --- mistakes ---


@pytest.mark.parametrize("k", [0, -1, 10, 2.5])
def test_k_out_of_range_is_named(k: Any) -> None:
    bank = FeatureBank(10, 16)
    bank.write(torch.arange(10), _clusters(10)[0])
    with pytest.raises(UserError, match=rf"neighbours\.k: got {k}; valid: 1 to 9"):
        search(bank.features, k)
    with pytest.raises(UserError, match=rf"neighbours\.k: got {k}; valid: 1 to 9"):
        bank.search(k)


def test_queries_allow_k_up_to_the_whole_bank() -> None:
    bank, _ = _clusters(10)
    assert search(bank, 10, queries=bank[:2]).index.sort().values.tolist() == [[*range(10)]] * 2
    with pytest.raises(UserError, match=r"neighbours\.k: got 11; valid: 1 to 10"):
        search(bank, 11, queries=bank[:2])


@pytest.mark.parametrize(
    ("index", "z", "says"),
    [
        ([0], torch.ones(1, 4), "index: got [0]; valid: torch.int64 of shape (B,)"),
        (
            torch.zeros(1),
            torch.ones(1, 4),
            "index: got torch.float32 of shape (1,); valid: torch.int64",
        ),
        (torch.tensor([2, 10]), torch.ones(2, 4), "index: got 2 to 10; valid: 0 to 4"),
        (torch.tensor([-1]), torch.ones(1, 4), "index: got -1 to -1; valid: 0 to 4"),
        (torch.tensor([0]), torch.ones(1, 3), "z: got shape (1, 3); valid: (1, 4)"),
        (torch.tensor([0]), [[1.0] * 4], "z: got [[1.0, 1.0, 1.0, 1.0]]; valid: (1, 4)"),
    ],
)
def test_what_cannot_be_written_is_named(index: Any, z: Any, says: str) -> None:
    bank = FeatureBank(5, 4)
    with pytest.raises(UserError, match=re.escape(says)):
        bank.write(index, z)
    assert not bank.filled.any()


@pytest.mark.parametrize(
    ("queries", "got"), [(torch.ones(2, 5), "shape (2, 5)"), ([[1.0]], "[[1.0]]")]
)
def test_queries_of_another_shape_are_named(queries: Any, got: str) -> None:
    says = re.escape(f"queries: got {got}; valid: a tensor of shape (Q, 4)")
    bank = FeatureBank(10, 4)
    with pytest.raises(UserError, match=says):
        bank.search(1, queries=queries)
    with pytest.raises(UserError, match=says):
        search(bank.features, 1, queries=queries)


def test_unknown_engine_is_named() -> None:
    with pytest.raises(UserError, match=r"engine: got 'exat', did you mean exact"):
        search(_clusters(10)[0], 3, engine="exat")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    bank, _ = _clusters(10)
    bank[3, 0] = value
    with pytest.raises(UserError, match="1 of 10 rows of the bank"):
        search(bank, 3)
    with pytest.raises(UserError, match="1 of 2 rows of the queries"):
        search(bank[:3], 3, queries=bank[2:4])
