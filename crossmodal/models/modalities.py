"""Which modalities a model has, and which of them a call gives."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from crossmodal._validate import check_count


def channels_by_modality(encoders: Mapping[str, nn.Module], channels: int | Mapping[str, int]) -> dict[str, int]:
    """Of the features of each encoder.

    Raises:
        ValueError: when there is no encoder, one has a name that no part of a module can have, or the channels of one
            are not given or not positive.
    """
    if not encoders:
        raise ValueError("encoders must hold at least one modality, got none")
    sizes = dict(channels) if isinstance(channels, Mapping) else dict.fromkeys(encoders, channels)
    for name in encoders:
        try:
            nn.ModuleDict({name: nn.Identity()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"encoders must have names that modules can have, got {name!r}: {error.args[0]}") from None
        if name not in sizes:
            raise ValueError(f"channels must have a number for {name}, got {', '.join(sizes) or 'none'}")
        check_count(f"channels of {name}", sizes[name])
    return sizes


def check_given(inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor], modalities: Collection[str]) -> None:
    """Raises ValueError for an unknown modality where one of the model's is left out, and for lengths without an input.

    A model reads what it knows of a batch that has more; where it is given less, an unknown name may be a misspelt one.
    """
    left_out = [name for name in modalities if name not in lengths]
    for name in (*lengths, *inputs) if left_out else ():
        if name not in modalities:
            raise ValueError(
                f"inputs and lengths must be of {', '.join(modalities)}, got {name!r} and none of {', '.join(left_out)}"
            )
    for name in modalities:
        if name in lengths and name not in inputs:
            raise ValueError(f"inputs must hold {name}, for which there are lengths, got {', '.join(inputs) or 'none'}")
