"""Read the residual stream and the head's input in one forward pass, and apply the head afterwards.

The decoder runs without its head: logits of a whole batch (262 144 numbers per position for Gemma 3) would
take more memory than everything else. The head is applied afterwards, to chunks of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Activations(NamedTuple):
    """Hold what is read in one forward pass."""

    head_input: torch.Tensor
    """[batch, length, d_model], after the final norm, in the model's dtype"""
    taps: dict[int, torch.Tensor]
    """layer -> resid_post [batch, length, d_model]"""


@dataclass(frozen=True)
class Subject:
    """Hold the model that a pass runs, and where its token ids go."""

    model: PreTrainedModel
    input_device: torch.device
    centered: bool = False
    """whether the SAEs read the residual stream minus its mean over d_model"""


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the decoder blocks of a plain or multimodal causal language model."""
    decoder = model.get_decoder()
    for name in ("layers", "h"):
        if (layers := getattr(decoder, name, None)) is not None:
            return layers
    raise QsaeError(f"{type(model).__name__}: no decoder layers found (looked for .layers and .h)")


def hidden_states(decoder: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the head's input [batch, length, d_model]: one forward of the decoder, without cache and head.

    There is no padding, but a mask is passed: without one, transformers reads position ids back from the
    device, once for each kind of attention, to detect packed sequences.
    """
    mask = input_ids.new_ones(input_ids.shape)
    return decoder(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state


def subtract_mean(hidden: torch.Tensor) -> torch.Tensor:
    """Subtract the mean over d_model, as TransformerLens's centred weights do; LayerNorm ignores it."""
    return hidden - hidden.mean(-1, keepdim=True)


class Taps:
    """Set forward hooks on the tapped layers; a context manager, so that none is left on the model."""

    def __init__(self, model: PreTrainedModel, layers: tuple[int, ...], centered: bool = False) -> None:
        self._centered = centered
        self._decoder = model.get_decoder()
        blocks = decoder_layers(model)
        self._blocks = {layer: blocks[layer] for layer in layers}
        self._seen: dict[int, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer, block in self._blocks.items():
            self._handles.append(block.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def _hook(self, layer: int) -> Any:
        def store(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self._seen[layer] = subtract_mean(hidden) if self._centered else hidden

        return store

    def read(self, input_ids: torch.Tensor) -> Activations:
        """Run one forward pass over ``input_ids`` [batch, length], without cache and head."""
        return Activations(hidden_states(self._decoder, input_ids), dict(self._seen))


@dataclass(frozen=True)
class Head:
    """Map head inputs to logits: the output embedding and, if the model has one, its soft cap."""

    module: torch.nn.Module
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Return the model's own head."""
        config = model.config.get_text_config()
        return cls(model.get_output_embeddings(), getattr(config, "final_logit_softcapping", None))

    @classmethod
    def from_weights(cls, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> Head:
        """Build a head from ``weight`` [vocabulary, d_model] and ``bias`` [vocabulary]."""
        import torch

        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            module.bias = torch.nn.Parameter(bias, requires_grad=False)
        return cls(module, softcap)

    @property
    def vocabulary(self) -> int:
        """Number of logits per position."""
        return int(self.module.out_features)  # type: ignore[arg-type]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [positions, vocabulary], at least float32, of head inputs [positions, d_model]."""
        logits = self.product(hidden)
        if self.softcap is not None:
            # the model's own order of operations, in place
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def product(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply head inputs with the head, accumulating and returning float32.

        The rounding of a product to bfloat16 on a GPU is an error larger than int8's whole KL divergence.
        """
        import torch

        weight: Any = self.module.weight
        plain = type(self.module) is torch.nn.Linear and self.module.bias is None
        if not plain or weight.dtype.itemsize >= 4:
            logits = self.module(hidden)
            return logits.float() if logits.dtype.itemsize < 4 else logits
        here = hidden.to(weight.device)
        if here.is_cuda:
            logits = torch.mm(here, weight.T, out_dtype=torch.float32)
        else:
            logits = here.float() @ weight.float().T
        return logits.to(hidden.device)


def check_head(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Refuse an architecture whose logits are not head(head_input), such as one with another scale.

    ``input_ids`` is [1, few]. A difference of more than 2% of the largest logit is too much.
    """
    import torch

    with torch.inference_mode():
        own = model(input_ids=input_ids, use_cache=False).logits.float()
        with Taps(model, ()) as taps:
            ours = Head.of(model).logits(taps.read(input_ids).head_input.flatten(0, 1)).float()
        ours = ours.to(own.device)  # spread over several GPUs, only the whole model returns to the first
    scale = own.abs().max().clamp_min(1e-6)
    if bool(((own.flatten(0, 1) - ours).abs().max() / scale > 0.02).item()):
        raise QsaeError(
            f"{type(model).__name__}: its logits are not its output embedding applied to the final "
            "hidden state; this architecture is not supported"
        )
