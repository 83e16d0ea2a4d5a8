"""`fewer learn audit`: what a distilled file gives away about the pictures it was made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, FullPrecision, pick_device
from fewer.core.errors import DataError
from fewer.core.files import write_bytes, write_json
from fewer.core.progress import Progress
from fewer.learn.data import LabelledImages, load_images
from fewer.learn.distillation.audit import AuditReport, audit
from fewer.learn.distillation.datasheet import holds_real_pixels
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.membership import membership_by_shadows
from fewer.learn.distillation.page import picture_source
from fewer.learn.distillation.scores import fit_to, side_of
from fewer.learn.picture_files import fit_of

MOST_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """What `fewer learn audit` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore
    file: tyro.conf.Positional[Path]
    """The distilled file."""
    data: Path
    """The real data it was made from; its test split (else validation) serves as pictures it never saw."""
    output: Path | None = None
    """Folder for audit.json and audit.html. They show real pictures: keep them where the data is."""
    update: Path | None = None
    """Write the file again with the audit's summary in its datasheet, under this name."""
    for_sharing: bool = False
    """Fail when any picture is flagged."""
    accept_risk: bool = False
    """With --for-sharing: go on in spite of flags."""
    networks: Annotated[int, Field(ge=1, le=50)] = 3
    """Networks of the membership test."""
    shadow_splits: Annotated[int, Field(ge=0, le=64)] = 0
    """Also the likelihood-ratio attack on the method: distils so many halves of the data (8 or more)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the networks that test membership."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: FullPrecision = "auto"
    """Networks compute in fp32."""


def audit_command(request: AuditRequest, progress: Progress) -> dict[str, object]:
    """Raises `DataError` with --for-sharing when pictures are flagged or were cut from real ones."""
    distilled = DistilledSet.load(request.file)
    # As the set was made of them, so that a copy is one to the last bit.
    splits = load_images(request.data, size=side_of(distilled), fit=fit_of(distilled.datasheet.method_config))
    train, held_out = splits.train.labelled(), splits.evaluation()
    device = pick_device(request.device)
    progress.say("comparing with the real pictures and testing membership")
    report = audit(distilled, train, held_out, networks=request.networks, seed=request.seed, device=device)
    summary = report.summary()
    if request.shadow_splits:
        summary["membership_auc_by_shadows"] = _shadows(request, distilled, train, progress)
    if request.output is not None:
        write_json(request.output / "audit.json", {**report.as_dict(), "summary": summary})
        write_bytes(request.output / "audit.html", _page(report, distilled, train).encode())
    # Crops of real pictures lie farther from the whole ones than copies do and may pass unflagged.
    crops = holds_real_pixels(distilled.datasheet)
    if crops and request.for_sharing and not request.accept_risk:
        raise DataError(
            f"the file says that it holds pixels of real pictures (and {report.flagged} of "
            f"{len(report.neighbours)} pictures are flagged); distil from noise or with --epsilon, or give "
            "--accept-risk"
        )
    if report.flagged and request.for_sharing and not request.accept_risk:
        raise DataError(
            f"{report.flagged} of {len(report.neighbours)} pictures are closer to a real one than "
            f"99 % of unseen "
            "real pictures are; distil again from noise or with --epsilon, or give --accept-risk"
        )
    if request.update is not None:
        sheet = distilled.datasheet
        changed = replace(sheet, privacy={**sheet.privacy, "audit": summary})
        replace(distilled, datasheet=changed).save(request.update)
    return {
        **summary,
        "real_pixels": crops,
        "true_positives_at_1_percent": report.by_loss.true_positives_at_1_percent,
        "held_out_copies": report.duplicates,
        "output": str(request.output) if request.output else None,
        "update": str(request.update) if request.update else None,
    }


def _shadows(
    request: AuditRequest, distilled: DistilledSet, train: LabelledImages, progress: Progress
) -> float:
    """Distils halves of the data as the file says it was distilled."""
    from fewer.core.config import validate
    from fewer.learn.distillation.loop import distill
    from fewer.learn.distillation.plan import DistillPlan

    plan = validate(DistillPlan, dict(distilled.datasheet.method_config))

    def distil(half: LabelledImages, number: int) -> DistilledSet:
        progress.say(f"shadow {number + 1} of {request.shadow_splits}")
        made = distill(half, plan=plan, seed=number, device=request.device)
        return replace(made, datasheet=replace(made.datasheet, recipe=distilled.datasheet.recipe))

    pool = fit_to(distilled, train)
    return membership_by_shadows(
        pool, distil, splits=request.shadow_splits, seed=request.seed, device=pick_device(request.device)
    ).auc


def _page(report: AuditReport, distilled: DistilledSet, train: LabelledImages) -> str:
    """Each synthetic picture beside its nearest real one, the closest first."""
    ours = distilled.as_images().images
    real = fit_to(distilled, train).images
    rows = sorted(report.neighbours, key=lambda n: (not n.flagged, n.pixel_distance))[:MOST_SHOWN]
    cells = "".join(
        f'<tr><td><img alt="synthetic picture {n.row}" src="{picture_source(ours[n.row])}"></td>'
        f'<td><img alt="nearest real picture" src="{picture_source(real[n.nearest])}"></td>'
        f"<td>{escape(n.label)}</td><td>{n.pixel_distance:.4f}</td><td>{n.similarity:.3f}</td>"
        f"<td>{n.feature_distance:.4f}</td><td>{'flagged' if n.flagged else ''}</td></tr>"
        for n in rows
    )
    limits = ", ".join(f"{name} {value:.4f}" for name, value in report.thresholds.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Audit</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\"><style>body{font:16px system-ui;max-width:60rem;margin:2rem auto}"
        "img{width:72px;height:72px;image-rendering:pixelated}td,th{padding:.2rem "
        ".8rem;text-align:left}</style>"
        f"<h1>Audit: {report.flagged} of {len(report.neighbours)} pictures flagged</h1>"
        "<p>This page shows real pictures. Keep it where the data is.</p>"
        f"<p>Closest 1 % of unseen real pictures: {escape(limits)}. Membership by loss: AUC "
        f"{report.by_loss.auc:.3f} ({report.by_loss.low:.3f} to {report.by_loss.high:.3f}); by distance: "
        f"{report.by_distance.auc:.3f}.</p><table><tr><th>synthetic<th>nearest real<th>class<th>distance"
        f"<th>SSIM<th>features<th></tr>{cells}</table></html>"
    )
