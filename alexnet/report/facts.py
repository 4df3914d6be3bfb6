"""What is worth noticing in a run, in a sentence for each part of the report; an empty one if nothing is known."""

from alexnet.figures.scores import FEW
from alexnet.metrics import reliability
from alexnet.report.charts import number, percent
from alexnet.run_reader import Run
from alexnet.series import Curve, of_epochs, of_steps


def training(run: Run) -> str:
    """Say where top-1 was highest, how far the loss fell, and how long training waited for data."""
    loss, top1, said = of_steps(run.log, "loss"), of_epochs(run.log, "top1"), []
    if len(top1.values):
        best = int(top1.values.argmax())
        said.append(f"Top-1 was highest after epoch {top1.epochs[best]:.0f}: {percent(top1.values[best])}")
    if len(loss.values) > 1:
        first, last = (_shown(loss, place) for place in (0, -1))
        said.append(f"the training loss went from {first} to {last}")
    if (wait := run.of_steps("data_wait")) is not None:
        said.append(f"training waited for data {percent(wait)} of the time")
    return "; ".join(said) + "." if said else ""


def _shown(curve: Curve, place: int) -> str:
    return number(float((curve.smoothed() or curve).values[place]))


def confidence(run: Run) -> str:
    """Say how confidence differs from accuracy, and how many bins have few images."""
    predictions = run.predictions
    if predictions is None:
        return ""
    confidence, accuracy = float(predictions.confidence.mean()), float(predictions.right.mean())
    images = reliability(predictions)["images"]
    pale = int(((images > 0) & (images < FEW)).sum())
    which = "too high" if confidence > accuracy else "too low"
    return (
        f"On average the confidence is {percent(confidence)} and {percent(accuracy)} are right, so it is {which} by "
        f"{100 * abs(confidence - accuracy):.1f} points; {pale} of {int((images > 0).sum())} bars are of few images."
    )


def mistakes(run: Run) -> str:
    """Count the mistakes that the network was certain of."""
    if not run.mistakes:
        return ""
    sure = sum(one.probability >= 0.9 for one in run.mistakes)
    return f"{sure} of them {'is' if sure == 1 else 'are'} wrong with a probability of 90 % or more."


def classes(run: Run) -> str:
    """Name the classes with the lowest and the highest F1."""
    rows = sorted((row for row in run.classes if row.images), key=lambda row: row.f1)
    if len(rows) < 2:
        return ""
    worst, best = rows[0], rows[-1]
    return f"Hardest is {worst.name} (F1 {percent(worst.f1)}), easiest {best.name} ({percent(best.f1)})."


def groups(run: Run) -> str:
    """Name the property whose groups differ most."""
    ordered = {
        name: sorted(rows, key=lambda row: row["top1"]) for name, rows in run.metrics.get("by_property", {}).items()
    }
    spreads = {name: rows[-1]["top1"] - rows[0]["top1"] for name, rows in ordered.items() if rows}
    if not spreads:
        return ""
    name = max(spreads, key=lambda key: spreads[key])
    low, high = ordered[name][0], ordered[name][-1]
    apart = "do not overlap" if low["interval"][1] < high["interval"][0] else "overlap"
    return (
        f"The largest difference is by {name}: {percent(low['top1'])} ({low['group']}) and {percent(high['top1'])} "
        f"({high['group']}); their intervals {apart}."
    )


def confusions(run: Run) -> str:
    """Name the pair of classes that is confused most often."""
    pairs = run.metrics.get("confused")
    if not pairs:
        return ""
    true, predicted, images = pairs[0]
    times = f"{images} times" if images > 1 else "once"
    return f"Most often confused: {true} with {predicted}, {times}."
