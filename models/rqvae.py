"""Trains the networks and codebooks of an rqvae; knows nothing of modalities beyond which are present, and of files.

Two stages, because they want opposite things of a video's neighbours:

1. Level 0 keeps them together. It is k-means over the fused embeddings, moved by `LatentCoder.moves` only as far as
   co-watched pairs (contrastive loss) and hidden modalities (the view without them must stay with its whole) ask.
2. All further levels tell them apart. The encoder sees the details of a video, the residual of level 0 and its code
   vector. KoLeo drives the latents of videos under one code to fill their space, so that further codes are used evenly
   under every code of level 0; the decoder must get the embedding back from any number of levels (progressive
   masking).

Codebooks start from k-means, follow the latents by moving averages, and end on a few Lloyd steps over all videos. The
averages' state ends with the training.

Source: Lee et al. 2022 (RQ-VAE); Huijben et al. 2024 (QINCo) for networks that are told the codes so far; PLUM
    2510.07784 for masking and contrastive loss; Sablayrolles et al. 2019 (Spreading vectors for similarity search) for
    KoLeo; van den Oord et al. 2017 (VQ-VAE) appendix A.1 for the moving averages.

Legend: N videos, B videos of a batch, S some of them, T a batch and its made-up videos, P pairs, M modalities, I inputs
of the encoder, C latent, D embedding, L levels, K codes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.kmeans import MovingAverages, kmeans, nearest, restarted
from models.quantizer import Fused, Quantizer

# Steps before the codebooks join: latents that still rush about would drag them along.
WARM_UP_SHARE = 0.25
# Stage 1 has little to learn; it takes this many steps per step of stage 2.
PLACING_SHARE = 0.5


class Views(NamedTuple):
    """A catalogue through the fusion: whole, and with some modalities hidden; equal where a video has only one."""

    full: Fused
    partial: Fused
    present_NM: Tensor
    left_NM: Tensor


def train_rqvae(
    quantizer: Quantizer,
    views: Views,
    pairs_P2: Tensor,
    generator: torch.Generator,
    report: Callable[[float], None],
) -> None:
    """Fit all of the quantizer that follows the fusion; `report` is told the share done."""
    config = quantizer.config
    _start_weights(quantizer.vae, generator)
    if len(pairs_P2) or not torch.equal(views.present_NM, views.left_NM):
        _train_places(quantizer, views, pairs_P2, generator)
    with torch.no_grad():
        place_ND = quantizer.vae.place(views.full.embedding_BD, views.present_NM)
        codebook_KD = kmeans(
            place_ND,
            config.codebook_sizes[0],
            iterations=config.kmeans_iterations,
            generator=restarted(generator),
        )
        quantizer.get_buffer("codebook_0").copy_(codebook_KD)
    if len(config.codebook_sizes) > 1:
        _Coding(quantizer, views, generator).run(report)


def _start_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights that are not zero on purpose; torch's own start would use the global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if layer.weight.any():
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)


def _train_places(
    quantizer: Quantizer, views: Views, pairs_P2: Tensor, generator: torch.Generator
) -> None:
    """Stage 1: move videos together that are watched together, and what is left of a video to its whole."""
    config, vae = quantizer.config, quantizer.vae
    embedding_ND = views.full.embedding_BD
    hidden_S = torch.nonzero((views.present_NM != views.left_NM).any(dim=1))[:, 0]

    def draw(num_rows: int) -> Tensor:
        return torch.randint(num_rows, (config.batch_size,), generator=generator)

    def place(rows_B: Tensor) -> Tensor:
        return vae.place(embedding_ND[rows_B], views.present_NM[rows_B])

    def loss(_: int) -> Tensor:
        rows_B = draw(len(embedding_ND))
        total = (place(rows_B) - embedding_ND[rows_B]).square().sum(1).mean()
        if len(hidden_S):
            rows_B = hidden_S[draw(len(hidden_S))]
            left_BD = vae.place(views.partial.embedding_BD[rows_B], views.left_NM[rows_B])
            total = total + (left_BD - place(rows_B).detach()).square().sum(1).mean()
        if len(pairs_P2):
            chosen_B2 = pairs_P2[draw(len(pairs_P2))]
            total = total + config.contrastive_weight * contrastive_loss(
                place(chosen_B2[:, 0]),
                place(chosen_B2[:, 1]),
                chosen_B2,
                temperature=config.contrastive_temperature,
            )
        return total

    num_steps = math.ceil(config.steps * PLACING_SHARE)
    minimise(loss, vae.moves.parameters(), num_steps, learning_rate=config.learning_rate)


def contrastive_loss(
    one_BD: Tensor, other_BD: Tensor, pairs_B2: Tensor, *, temperature: float
) -> Tensor:
    """Return how hard it is to tell whom each video was watched with from those that others were watched with.

    Source: PLUM 2510.07784 (co-occurrence contrastive loss); van den Oord et al. 2018 (InfoNCE).
    """
    logits_BB = one_BD @ other_BD.T / temperature
    # Where another pair holds the same video, it is no wrong answer.
    ends_B1, ends_1B = pairs_B2[:, 1:], pairs_B2[:, 1].unsqueeze(0)
    starts_B1, starts_1B = pairs_B2[:, :1], pairs_B2[:, 0].unsqueeze(0)
    same_BB = (ends_B1 == ends_1B) | (starts_B1 == starts_1B) | (starts_B1 == ends_1B)
    diagonal_BB = torch.eye(len(pairs_B2), dtype=torch.bool)
    logits_BB = logits_BB.masked_fill(same_BB & ~diagonal_BB, -math.inf)
    answer_B = torch.arange(len(pairs_B2))
    forth = nn.functional.cross_entropy(logits_BB, answer_B)
    return (forth + nn.functional.cross_entropy(logits_BB.T, answer_B)) / 2


class _Rows(NamedTuple):
    """What stage 2 learns from: every video, then the partial view of those that have one."""

    inputs_NI: Tensor
    coarse_ND: Tensor
    code_N: Tensor
    target_ND: Tensor
    video_N: Tensor


class _Coding:
    """Stage 2: the encoder, the decoder and the codebooks of all levels but the first."""

    def __init__(self, quantizer: Quantizer, views: Views, generator: torch.Generator) -> None:
        self._quantizer, self._generator = quantizer, generator
        self._vae, self._config = quantizer.vae, quantizer.config
        self._num_videos = len(views.present_NM)
        with torch.no_grad():
            self._rows = self._start(views)
        self._residual_variance = self._vae.get_buffer("residual_scale").square()
        order_N = self._rows.code_N.argsort(stable=True)
        counts_K = torch.bincount(self._rows.code_N, minlength=self._config.codebook_sizes[0])
        self._members = torch.split(order_N, counts_K.tolist())
        self._averages: MovingAverages | None = None

    def _start(self, views: Views) -> _Rows:
        """Set the scales of what the networks see, and return it."""
        vae, codebook_KD = self._vae, self._quantizer.get_buffer("codebook_0")
        partial_S = torch.nonzero((views.present_NM != views.left_NM).any(dim=1))[:, 0]
        parts = []
        for fused, present_NM, rows_S in (
            (views.full, views.present_NM, torch.arange(self._num_videos)),
            (views.partial, views.left_NM, partial_S),
        ):
            place_SD = vae.place(fused.embedding_BD[rows_S], present_NM[rows_S])
            code_S = nearest(place_SD, codebook_KD)
            coarse_SD = codebook_KD[code_S]
            target_SD = views.full.embedding_BD[rows_S]
            raw_SI = vae.inputs(fused.detail_BE[rows_S], place_SD, coarse_SD)  # as yet unscaled
            parts.append(_Rows(raw_SI, coarse_SD, code_S, target_SD, rows_S))
        rows = _Rows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        mean_I, deviation_I = rows.inputs_NI.mean(0), rows.inputs_NI.std(0)
        scale_I = torch.where(deviation_I > 1e-6, 1 / deviation_I.clamp(min=1e-6), 0)
        vae.get_buffer("input_mean").copy_(mean_I)
        vae.get_buffer("input_scale").copy_(scale_I)
        residual_ND = rows.target_ND - rows.coarse_ND
        vae.get_buffer("residual_scale").copy_(residual_ND.square().mean().sqrt().clamp(min=1e-6))
        return rows._replace(inputs_NI=(rows.inputs_NI - mean_I) * scale_I)

    def run(self, report: Callable[[float], None]) -> None:
        """Train, then settle the codebooks on all videos."""
        num_steps = self._config.steps
        warm_up = math.ceil(num_steps * WARM_UP_SHARE)

        def loss(step: int) -> Tensor:
            if step % 50 == 0:
                report(step / num_steps)
            if step == warm_up:
                self._fit_codebooks()
                self._averages = MovingAverages(self._codebooks, self._config.ema_decay)
            return self._loss(self._batch())

        parameters = [*self._vae.encoder.parameters(), *self._vae.decoder.parameters()]
        minimise(loss, parameters, num_steps, learning_rate=self._config.learning_rate)
        self._fit_codebooks(settle=True)

    @property
    def _codebooks(self) -> list[Tensor]:
        levels = range(1, len(self._config.codebook_sizes))
        return [self._quantizer.get_buffer(f"codebook_{level}") for level in levels]

    def _fit_codebooks(self, *, settle: bool = False) -> None:
        """Run k-means level by level over all videos' latents, from where the codebooks are if they are to settle."""
        with torch.no_grad():
            residual_NC = self._vae.encode(self._rows.inputs_NI[: self._num_videos])
            for codebook_KC in self._codebooks:
                found_KC = kmeans(
                    residual_NC,
                    len(codebook_KC),
                    iterations=self._config.kmeans_iterations,
                    generator=self._generator,
                    start_KD=codebook_KC if settle else None,
                )
                codebook_KC.copy_(found_KC)
                residual_NC = residual_NC - found_KC[nearest(residual_NC, found_KC)]

    def _batch(self) -> Tensor:
        """Return the rows of some codes of level 0, all of each code's, but for the last."""
        chosen, num_rows = [], 0
        for code in torch.randperm(len(self._members), generator=self._generator).tolist():
            rows_S = self._members[code]
            chosen.append(rows_S[torch.randperm(len(rows_S), generator=self._generator)])
            num_rows += len(rows_S)
            if num_rows >= self._config.batch_size:
                break
        return torch.cat(chosen)[: self._config.batch_size]

    def _loss(self, rows_B: Tensor) -> Tensor:
        rows, config = self._rows, self._config
        code_B, video_B = rows.code_N[rows_B], rows.video_N[rows_B]
        inputs_BI = rows.inputs_NI[rows_B]
        near_BB = (code_B[:, None] == code_B) & (video_B[:, None] != video_B)
        made_up_SI, source_S = self._made_up(inputs_BI, rows.target_ND[rows_B], near_BB)
        latent_TC = self._vae.encode(torch.cat([inputs_BI, made_up_SI]))
        latent_BC = latent_TC[: len(rows_B)]
        # A made-up video stands apart from all others under its code, its source too.
        new_S = torch.arange(-len(source_S), 0)
        code_T = torch.cat([code_B, code_B[source_S]])
        video_T = torch.cat([video_B, new_S])
        spread = spread_loss(latent_TC, (code_T[:, None] == code_T) & (video_T[:, None] != video_T))
        passed_BC, commitment = self._coded(latent_BC)
        decoded_BD = self._vae.decode(passed_BC, rows.coarse_ND[rows_B])
        error = (decoded_BD - rows.target_ND[rows_B]).square().mean() / self._residual_variance
        return error + config.spread_weight * spread + config.commitment_weight * commitment

    def _coded(self, latent_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder is given of the latents, and how far they are from all their code vectors' sum."""
        if self._averages is None:
            return latent_BC, torch.zeros(())
        sums = self._averages.follow(latent_BC.detach())
        commitment = (latent_BC - sums[-1]).square().sum(1).mean()
        return cut_off(latent_BC, sums, self._generator), commitment

    def _made_up(
        self, inputs_BI: Tensor, target_BD: Tensor, near_BB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return videos that differ from a real one as two near ones differ, and the real ones' places in the batch.

        New uploads are near to old ones in directions of which the catalogue holds few samples; this adds some.
        """
        size, generator = len(inputs_BI), self._generator
        source_S = torch.randperm(size, generator=generator)[: size // 2]
        one_S = torch.randint(size, (len(source_S),), generator=generator)
        likeness_SB = (target_BD[one_S] @ target_BD.T).masked_fill(~near_BB[one_S], -math.inf)
        likeness_S, other_S = likeness_SB.max(dim=1)
        share_S1 = torch.rand(len(source_S), 1, generator=generator)
        # A video alone under its code has nobody to differ from.
        step_SI = torch.where(
            likeness_S[:, None] > -math.inf, inputs_BI[one_S] - inputs_BI[other_S], 0.0
        )
        return inputs_BI[source_S] + share_S1 * step_SI, source_S


def cut_off(latent_BC: Tensor, sums: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Return each row's sum of code vectors up to a random level, with the gradient of its latent; of no level, 0.

    Source: PLUM 2510.07784 (progressive masking), so that every prefix of codes means something.
    """
    kept_B = torch.randint(len(sums) + 1, (len(latent_BC),), generator=generator)
    prefixes_BLC = torch.stack([torch.zeros_like(latent_BC), *sums], dim=1)
    prefix_BC = prefixes_BLC[torch.arange(len(kept_B)), kept_B]
    straight_through_BC = latent_BC + (prefix_BC - latent_BC).detach()
    return torch.where(kept_B[:, None] > 0, straight_through_BC, 0.0)


def spread_loss(latent_BC: Tensor, apart_BB: Tensor) -> Tensor:
    """Return minus the mean log distance of each latent to the nearest of those that it should stand apart from.

    Source: Sablayrolles et al. 2019 (Spreading vectors for similarity search) sec. 3.2, eq. 2 (KoLeo).
    """
    squared_BB = 2 - 2 * latent_BC @ latent_BC.T
    # 4 is as far as two latents of length 1 can be: who has nobody to stand apart from moves nothing.
    nearest_B = squared_BB.masked_fill(~apart_BB, 4.0).min(dim=1).values
    return -nearest_B.clamp(1e-8, 4.0).log().mean() / 2


def minimise(
    loss: Callable[[int], Tensor],
    parameters: Iterable[nn.Parameter],
    num_steps: int,
    *,
    learning_rate: float,
) -> None:
    """Take AdamW steps on what `loss` returns for each step; the rate warms up, then falls along a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    warm_up = max(1, num_steps // 16)
    for step in range(num_steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
        rate = learning_rate * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        torch.autograd.backward(loss(step))
        optimizer.step()
