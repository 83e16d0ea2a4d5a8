from dataclasses import replace
from html.parser import HTMLParser

import torch

from fewer.learn.data import LabelledImages, pick_labels
from fewer.learn.evaluate import Figures, evaluate_probabilities
from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.few_labels.report import report_page, verdict
from fewer.learn.few_labels.train import semi_supervised

GOOD = evaluate_probabilities(torch.eye(2), torch.tensor([0, 1]))
BAD = evaluate_probabilities(torch.eye(2), torch.tensor([0, 0]))


def test_the_verdict_is_plain_about_harm() -> None:
    assert "did NOT help" in verdict(BAD, GOOD)
    assert "helped: balanced accuracy 100.0%, 50.0 points" in verdict(GOOD, BAD)
    assert "did NOT help" in verdict(GOOD, GOOD)
    assert "No run on the labels alone" in verdict(GOOD, None)
    assert "Nothing was measured" in verdict(None, None)


def test_the_verdict_says_what_may_be_chance() -> None:
    def of(right: int, count: int) -> Figures:
        labels = torch.arange(2).repeat_interleave(count)
        answers = torch.where(torch.arange(2 * count) % count < right, labels, 1 - labels)
        return evaluate_probabilities(torch.nn.functional.one_hot(answers, 2).double(), labels)

    few = verdict(of(17, 20), of(16, 20))
    assert "helped" in few and "On 40 held-out pictures up to" in few
    assert "chance" not in verdict(of(1700, 2000), of(1600, 2000))
    assert "chance" in verdict(of(1600, 2000), of(1601, 2000))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_escapes_names(
    train: LabelledImages, held_out: LabelledImages
) -> None:
    names = ("<script>alert(1)</script>", "b", "c")
    train, held_out = (LabelledImages(d.images, d.labels, names) for d in (train, held_out))
    plan = SemiSupervisedPlan(steps=3, batch=6, ratio=3, device="cpu")
    result = semi_supervised(train, pick_labels(train.labels, 2, 3, 0), plan=plan, test=held_out)
    page = report_page(result, train, held_out, BAD)
    tags = Tags()
    tags.feed(page)
    kinds = [tag for tag, _ in tags.seen]
    assert "script" not in kinds
    assert kinds.count("svg") == 5
    assert kinds.count("img") == 12
    assert all((a.get("src") or "data:").startswith("data:") and "href" not in a for _, a in tags.seen)
    turned = LabelledImages(held_out.images, 2 - held_out.labels, names[::-1])  # the same, in other order
    assert report_page(result, train, turned, BAD) == page
    bare = report_page(replace(result, figures=None), train, None)
    assert "held-out" not in bare
