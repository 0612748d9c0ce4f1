"""How the work is cut to a budget: counted from the shapes, on a model that has no weights."""

from __future__ import annotations

from pathlib import Path

import families
import pytest
import torch
from families import FAMILIES
from transformers import AutoModelForCausalLM, LlamaConfig

from knowledge_circuits.engine.decoder import MLP, Activation, Attention, Block, Decoder
from knowledge_circuits.engine.graph import layout_of
from knowledge_circuits.engine.memory import budget_bytes, control_group_room, plan_attribution, plan_circuit, workspace
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError

LAYOUT = layout_of(32, 32, False)
STEPS = 5


@pytest.fixture(scope="module")
def llama_8b() -> Decoder:
    """The 8-billion-parameter Llama shape in bfloat16, on the device that holds shapes only."""
    d, heads, kv_heads, width, vocabulary = 4096, 32, 8, 14336, 128256
    e = d // heads

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    projections = (heads + 2 * kv_heads) * e
    attention = Attention(empty(d, projections), empty(projections), empty(heads * e, d), empty(d))
    mlp = MLP(empty(d, 2 * width), empty(2 * width), empty(width, d), empty(d), gated=True)
    return Decoder(
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_head=e,
        activation=Activation.SILU,
        centred=False,
        parallel=False,
        norm_eps=1e-5,
        qk_norm_eps=0.0,
        max_positions=8192,
        embedding=empty(vocabulary, d),
        positions=None,
        inverse_frequencies=empty(e // 2),
        rotary_scale=1.0,
        blocks=(Block(attention, mlp),) * 32,
        unembedding=empty(d, vocabulary),
        unembedding_bias=empty(vocabulary),
    )


def weight_bytes(decoder: Decoder) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in decoder.tensors())


def test_the_shape_is_that_of_an_8_billion_parameter_llama(llama_8b: Decoder) -> None:
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == pytest.approx(8.03e9, rel=1e-3)
    assert weight_bytes(llama_8b) / 2 == pytest.approx(parameters, rel=1e-3)


def test_eight_prompts_of_32_tokens_fit_a_gpu_of_80_gb_beside_an_8b_llama(llama_8b: Decoder) -> None:
    for budget in (10e9, 80e9 - 2 * weight_bytes(llama_8b)):  # what docs/engine.md counts; what is left at worst
        plan = plan_attribution(llama_8b, LAYOUT, 32, 8, STEPS + 1, budget)
        assert (plan.items, plan.runs, plan.positions) == (8, STEPS + 1, 32)


def test_items_are_cut_before_positions_and_positions_before_runs(llama_8b: Decoder) -> None:
    cuts = [plan_attribution(llama_8b, LAYOUT, 512, 8, STEPS + 1, budget) for budget in (60e9, 22e9, 12e9, 1.0)]
    assert 1 < cuts[0].items < 8 and (cuts[0].runs, cuts[0].positions) == (STEPS + 1, 512)
    assert cuts[1].items == 1 and cuts[1].runs == STEPS + 1 and 64 <= cuts[1].positions < 512
    assert 1 < cuts[2].runs <= STEPS and 64 <= cuts[2].positions < 512
    assert (cuts[3].items, cuts[3].runs, cuts[3].positions) == (1, 1, 1)


def test_logits_at_many_positions_count(llama_8b: Decoder) -> None:
    plans = [plan_attribution(llama_8b, LAYOUT, 32, 8, STEPS + 1, 10e9, queries=count) for count in (1, 2, 32)]
    assert plans[0].items == 8 and plans[2].items < plans[1].items <= 8
    # 31 positions x 128,256 tokens x 4 numbers of 4 bytes are 64 MB a run; two prompts of six runs no longer fit.
    both = [plan_attribution(llama_8b, LAYOUT, 32, 2, STEPS + 1, 2.6e9, queries=count).items for count in (1, 32)]
    assert both == [2, 1]
    circuits = [plan_circuit(llama_8b, 32, 10e9, queries=count)[0] for count in (1, 32)]
    assert circuits[1] < circuits[0]


def test_a_circuit_takes_one_prompt_at_least(llama_8b: Decoder) -> None:
    assert plan_circuit(llama_8b, 32, 1.0) == (1, 1)
    items, positions = plan_circuit(llama_8b, 32, 10e9)
    assert items > 1 and positions == 32


def test_a_long_prompt_of_a_large_model_runs_through_a_circuit_some_positions_at_a_time(llama_8b: Decoder) -> None:
    items, positions = plan_circuit(llama_8b, 2048, 16e9)
    assert items == 1 and 64 <= positions < 2048


def test_on_a_cpu_the_longer_the_prompts_the_fewer_a_pass_takes_however_much_memory_there_is() -> None:
    decoder = decoder_from_model(families.random_model(FAMILIES["gpt2"](), 0, torch.float32))
    short, long = (plan_circuit(decoder, positions, 1e15)[0] for positions in (8, 8000))
    assert 1 <= long <= short // 900


def test_a_block_of_memory_serves_one_tensor_at_a_time() -> None:
    like = torch.zeros(1)
    first = workspace((3, 5), like)
    place = first.data_ptr()
    second = workspace((3, 5), like)
    assert second.data_ptr() != place
    del first, second
    assert workspace((5, 2), like).data_ptr() == place


def test_kept_memory_made_in_inference_mode_is_written_outside_of_it() -> None:
    like = torch.zeros(())
    with torch.inference_mode():
        first = workspace((2000, 1000), like)
        first.zero_()
    place = first.data_ptr()
    del first
    second = workspace((2000, 1000), like)
    assert second.data_ptr() == place
    second[0] = 1  # PyTorch refuses this for tensors of inference mode
    assert workspace((2,), like.double()).dtype == torch.float64


@pytest.mark.parametrize("stated", [0.0, -1.0, float("nan")])
def test_a_budget_is_a_positive_number(stated: float) -> None:
    with pytest.raises(InputError, match="positive number of gigabytes"):
        budget_bytes(stated, torch.device("cpu"))


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = budget_bytes(None, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert budget_bytes(None, torch.device("cpu")) < alone / 10


def test_a_stated_budget_is_in_gigabytes_and_one_that_is_found_is_less_than_the_machine_has() -> None:
    import psutil

    assert budget_bytes(1.5, torch.device("cpu")) == 1.5e9
    assert 0 < budget_bytes(None, torch.device("cpu")) < psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/job/step", "sys/fs/cgroup/job", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu:/\n4:memory:/job/step",
            "sys/fs/cgroup/memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_of_a_container_or_job_bounds_what_is_free(tmp_path: Path, own: str, folder: str, names: tuple):
    assert control_group_room(tmp_path) == float("inf")
    limit, usage, cache = names
    groups = [tmp_path / folder, tmp_path / folder / "step"]
    for group, size in zip(groups, ("5000", "max" if limit == "memory.max" else str(2**63 - 4096)), strict=True):
        group.mkdir(parents=True)
        (group / limit).write_text(f"{size}\n")
        (group / usage).write_text("3000\n")
        (group / "memory.stat").write_text(f"anon 7\n{cache} 1000\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own + "\n")
    assert control_group_room(tmp_path) == 5000 - 3000 + 1000
