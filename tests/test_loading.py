"""Loading takes hardly more memory than the weights; quantized weights and adapters are loaded as plain weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import families
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig

from knowledge_circuits.command_line import program_parser
from knowledge_circuits.engine.forward import all_logits
from knowledge_circuits.engine.weights import decoder_from_model, load_decoder
from knowledge_circuits.files import BOUNDS, InputError
from knowledge_circuits.models.loading import load_configuration, load_model, record_base, weights_digest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.model_loader import model_facts

GPT2 = GPT2Config(vocab_size=3000, n_embd=600, n_layer=12, n_head=10, n_positions=64)
LLAMA = LlamaConfig(
    vocab_size=3000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=17,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
    max_position_embeddings=64,
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_at_most_15_percent_more_memory_than_the_weights(tmp_path: Path) -> None:
    folders = []
    for config in (GPT2, LLAMA):
        for stored in (torch.float32, torch.bfloat16):  # as stored, and converted
            folders.append(str(tmp_path / f"{config.model_type} {stored}"))
            families.random_model(config, dtype=stored).save_pretrained(folders[-1])
    # Freed blocks go back to the system at once, so that resident memory is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = [sys.executable, str(Path(__file__).with_name("loading_peak.py")), "float32", *folders]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert not result.returncode and "Warning" not in result.stderr, result.stderr
    for folder, measured in zip(folders, json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert measured["weights"] > 190e6, folder
        assert measured["weights"] < measured["peak"] < 1.15 * measured["weights"], folder


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_folder_read_part_by_part_gives_the_weights_of_the_whole_model(tmp_path: Path, family: str) -> None:
    families.save_family(tmp_path, family)
    read, whole = load_decoder(str(tmp_path)), decoder_from_model(families.random_model(families.FAMILIES[family]()))
    for (name, tensor), (_, expected) in zip(read.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6, msg=name)


QUANTIZED = LlamaConfig(
    vocab_size=families.VOCABULARY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=families.POSITIONS,
    bos_token_id=0,
    eos_token_id=0,
)


def test_8_bit_weights_are_dequantized_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = families.random_model(QUANTIZED)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in [name for name in stored if name.endswith("proj.weight")]:
        blocks = stored[name].unfold(0, 64, 64).unfold(1, 64, 64)  # [.., .., 64, 64], a scale for each
        scale = blocks.abs().amax((2, 3)) / torch.finfo(torch.float8_e4m3fn).max
        wide = scale.repeat_interleave(64, 0).repeat_interleave(64, 1)
        stored[name] = (stored[name] / wide).to(torch.float8_e4m3fn)
        stored[name + "_scale_inv"] = scale
        model.get_parameter(name).data = stored[name].float() * wide
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [64, 64],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = load_decoder(str(tmp_path))
    for (name, tensor), (_, expected) in zip(decoder.tensors(), decoder_from_model(model).tensors(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6, msg=name)
    assert "its quantized weights are dequantized to float32" in capsys.readouterr().out


def test_4_bit_weights_are_dequantized(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    families.random_model(QUANTIZED).save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=quantization)
    model.save_pretrained(tmp_path / "quantized")
    decoder, plain = load_decoder(str(tmp_path / "quantized")), load_decoder(str(tmp_path / "plain"))
    weight, expected = decoder.blocks[0].mlp.w_out, plain.blocks[0].mlp.w_out
    assert 0 < (weight - expected).abs().max() < 0.2 * expected.abs().max()
    assert torch.equal(decoder.embedding, plain.embedding)


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 10**30}, {"text_config": {"num_attention_heads": 10**9}}])
def test_a_configuration_of_more_layers_and_heads_than_any_model_is_refused(tmp_path: Path, sizes: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes}))
    with pytest.raises(InputError, match=r"are more than 160 of 160; .* raise --max_layers and --max_heads"):
        load_configuration(str(tmp_path))


def test_a_model_beyond_the_bounds_is_loaded_when_the_flags_raise_them(tmp_path: Path, monkeypatch) -> None:
    families.save_family(tmp_path, "llama")
    layers = json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"]
    monkeypatch.setattr(BOUNDS, "max_layers", layers - 1)
    monkeypatch.setattr(BOUNDS, "max_heads", 4)
    with pytest.raises(InputError, match=f"{layers} layers of 4 heads are more than {layers - 1} of 4"):
        load_decoder(str(tmp_path))
    program_parser(None).parse_args(["--max_layers", str(layers)])
    assert len(load_decoder(str(tmp_path)).blocks) == layers


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_missing_package_for_quantized_weights_is_one_sentence(tmp_path: Path, method: str) -> None:
    if importlib.util.find_spec({"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel"}[method]):
        pytest.skip("the package is installed")
    families.save_checkpoint(tmp_path, QUANTIZED)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": method == "bitsandbytes", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"could not be loaded \(ImportError: .* requires .*pip install") as caught:
        load_decoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a LoRA adapter whose base model lies beside it."""
    families.save_family(tmp_path / "base", "llama")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "../base"})
    )
    return tmp_path / "adapter"


def test_an_adapters_folder_is_loaded_merged_with_its_base_models_tokenizer(adapter: Path) -> None:
    merged = load_decoder(str(adapter.parent / "base"), adapter=str(adapter))
    assert torch.equal(load_decoder(str(adapter)).blocks[1].mlp.w_out, merged.blocks[1].mlp.w_out)
    weights = [
        model.model.layers[1].mlp.down_proj.weight for model in map(load_model, (str(adapter), f"{adapter}/../base"))
    ]
    assert (weights[0] - weights[1]).abs().max() > 1e-3
    assert load_tokenizer(str(adapter)).get_vocab() == families.word_tokenizer().get_vocab()


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="my_model: no such folder, nor found on the hub"):
        load_tokenizer("my_model")


def test_an_adapter_without_its_base_model_is_named_with_it(adapter: Path) -> None:
    (adapter.parent / "base").rename(adapter.parent / "elsewhere")
    with pytest.raises(InputError, match=r"/adapter: its base model, which adapter_config.json names: .*base"):
        load_decoder(str(adapter))


def test_an_adapters_results_depend_on_its_base_model(adapter: Path) -> None:
    (checkpoint,) = checkpoints(str(adapter))
    before = model_facts(checkpoint, "float32")
    families.save_family(adapter.parent / "base", "llama", seed=1)
    assert model_facts(checkpoint, "float32") != before


def test_an_adapter_is_not_merged_into_another_model_of_the_same_shapes(adapter: Path, tmp_path: Path, capsys) -> None:
    families.save_family(tmp_path / "other", "llama", seed=1)
    with pytest.raises(InputError, match=r"adapter: trained on a base model with other weights than .*other; give"):
        load_decoder(str(tmp_path / "other"), adapter=str(adapter))
    record_base(adapter, str(tmp_path / "base"))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"trained on a base model with other weights .* or remove .*base_model.json"):
        load_decoder(str(tmp_path / "other"), adapter=str(adapter))
    load_decoder(str(tmp_path / "moved"), adapter=str(adapter))
    assert "base model" not in capsys.readouterr().out, "the same weights in another folder need no word"
    (tmp_path / "other").rename(tmp_path / "base")
    with pytest.raises(InputError, match="trained on a base model with other weights than"):
        load_decoder(str(adapter))


def test_a_base_model_that_cannot_be_compared_is_said_in_one_line(adapter: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    load_decoder(str(tmp_path / "moved"), adapter=str(adapter))
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{adapter}: its base model is ../base; whether {tmp_path}/moved is the same one cannot be told"]


def test_an_adapter_without_a_base_model_is_refused(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="base_model_name_or_path names no model"):
        load_decoder(str(adapter))


@pytest.mark.parametrize("tied", [["lm_head"], ["embed_tokens", "wte"], ["lm_head", "embed_tokens", "wte"]])
@pytest.mark.parametrize("family", ["llama-biases-tied", "gpt2"])
def test_an_adapter_of_a_head_or_an_embedding_that_share_their_weights_is_merged_into_it_alone(
    tmp_path: Path, family: str, tied: list[str]
) -> None:
    families.save_family(tmp_path / "base", family)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=2, target_modules=tied, init_lora_weights=False),
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(1, 10)[None]
    with torch.no_grad():
        expected, base = adapted(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits
        merged = load_model(str(tmp_path / "adapter"))(ids).logits
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    for decoder in (
        load_decoder(str(tmp_path / "base"), adapter=str(tmp_path / "adapter")),
        load_decoder(str(tmp_path / "adapter")),
    ):
        torch.testing.assert_close(all_logits(decoder, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_adapter_is_merged_in_every_data_type(adapter: Path, dtype: torch.dtype) -> None:
    assert load_model(str(adapter), dtype=dtype).dtype is dtype


def test_an_adapter_whose_merged_form_predicts_otherwise_is_refused(adapter: Path, monkeypatch) -> None:
    monkeypatch.setattr(peft.LoraModel, "merge_and_unload", peft.LoraModel.unload)
    with pytest.raises(InputError, match=r"adapter: merging changes what the model predicts \(logits by .*, relative"):
        load_model(str(adapter))


def test_an_earlier_versions_digest_of_a_base_model_is_not_compared(adapter: Path, capsys) -> None:
    record = {"base_model": "elsewhere", "weights": "0123456789abcdef"}
    (adapter / "base_model.json").write_text(json.dumps(record))
    load_decoder(str(adapter))
    (adapter / "base_model.json").write_text(json.dumps({**record, "weights": "0123456789abcdef" * 2}))
    with pytest.raises(InputError, match="trained on a base model with other weights"):
        load_decoder(str(adapter))


def test_the_digest_of_weights_is_of_every_byte(tmp_path: Path) -> None:
    path, megabytes = tmp_path / "model.safetensors", 9
    content = bytearray(megabytes << 20)
    digests = set()
    for position in (0, 70_000, 1_000_000, (4 << 20) - 1, 4 << 20, 6_666_666, len(content) - 1):
        content[position] ^= 1
        path.write_bytes(content)
        digests.add(weights_digest(tmp_path))
    assert len(digests) == 7 and all(len(digest or "") == 32 for digest in digests)
    path.rename(tmp_path / "model-00001.safetensors")
    assert weights_digest(tmp_path) not in digests
    for name in ("adapter_model.bin", "pytorch_model.bin", "empty.safetensors"):
        before = weights_digest(tmp_path)
        (tmp_path / name).write_bytes(b"")
        assert weights_digest(tmp_path) != before


def test_weights_are_read_once_in_a_process_unless_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    first = weights_digest(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", None)
        assert weights_digest(tmp_path) == first
    times = path.stat()
    path.write_bytes(b"WEIGHTS")  # as many bytes, and the same time of the last change
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_digest(tmp_path) != first


def test_other_weights_of_an_adapter_in_pickled_form_are_noticed(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    (checkpoint,) = checkpoints(str(adapter))
    before = model_facts(checkpoint, "float32")
    torch.save({name: 2 * weight for name, weight in weights.items()}, adapter / "adapter_model.bin")
    assert {key for key, value in model_facts(checkpoint, "float32").items() if value != before[key]} == {"weights"}
