"""The package's public names: lazy, complete, and with errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import knowledge_circuits as kc
from knowledge_circuits.engine.graph import Layout
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError


def test_importing_the_package_imports_no_library() -> None:
    program = "import sys, knowledge_circuits; print(*sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == "\n"


def test_every_public_name_is_there_and_listed() -> None:
    for name in kc.__all__:
        assert callable(getattr(kc, name)), name
    assert set(kc.__all__) <= set(dir(kc))
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        _ = kc.atribute


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama's folder, and an adapter with random weights for it in `adapter`."""
    tiny.save_tiny_llama(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path


def test_an_adapter_is_merged_on_loading(folder: Path) -> None:
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "model"), str(folder / "adapter")
    )
    expected = decoder_from_model(adapted.merge_and_unload())
    merged = kc.load_model(str(folder / "model"), adapter=str(folder / "adapter"))
    plain = kc.load_model(str(folder / "model"))
    pairs = kc.PromptPairs([[0, 5, 6], [0, 7, 8]], [[0, 7, 8], [0, 5, 6]], [(9, 10), (10, 9)])
    scores = kc.attribute(merged, pairs).scores
    assert torch.equal(scores, kc.attribute(expected, pairs).scores)
    assert not torch.allclose(scores, kc.attribute(plain, pairs).scores, atol=1e-6)


def test_an_adapter_of_another_model_or_none_at_all_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_tiny_gpt2(folder / "gpt2")
    adapter = str(folder / "adapter")
    with pytest.raises(InputError, match=r"adapter: the adapter does not fit this model .* trained on another one\?"):
        kc.load_model(str(folder / "gpt2"), adapter=adapter)
    config = AutoConfig.from_pretrained(folder / "model")
    for size, reason in ({"hidden_size": 64}, "does not fit"), ({"num_hidden_layers": 5}, "without a counterpart"):
        other = LlamaConfig(**{**config.to_dict(), **size})
        LlamaForCausalLM(other).save_pretrained(folder / "other")
        with pytest.raises(InputError, match=reason):
            kc.load_model(str(folder / "other"), adapter=adapter)
    with pytest.raises(InputError, match=r"adapter_config.json is missing"):
        kc.load_model(str(folder / "model"), adapter=str(folder))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        kc.load_model(str(folder / "model"), adapter=adapter)


def scored(layout: Layout) -> kc.Graph:
    scores = torch.randn(layout.real_edges.shape, generator=torch.Generator().manual_seed(0)) * layout.real_edges
    return kc.Graph(layout, scores, layout.real_edges, 8)


def test_circuits_of_one_shape_are_drawn_side_by_side() -> None:
    graph = scored(Layout(2, 2))
    assert isinstance(kc.draw(kc.top_n(graph, 9)), Figure)
    figure = kc.draw({"small": kc.top_n(graph, 5), "large": kc.top_n(graph, 20)}, title="Two circuits")
    headings = [axes.get_title(loc="left") for axes in figure.axes]
    assert headings[0].startswith("small: 5 edges") and headings[1].startswith("large: 20 edges")
    with pytest.raises(InputError, match="different shapes"):
        kc.draw({"a": graph, "b": scored(Layout(1, 2))})
    with pytest.raises(InputError, match="no circuit to draw"):
        kc.draw({})
