"""Learning-rate trials: once all of a method's have ended, its rate is chosen and recorded."""

from collections.abc import Collection

from trl_opd.boards.choices import Choice, Trial, chosen_rate, judged, write_choice
from trl_opd.boards.runs import FAILED, FINISHED, Run, choice_of, status_of, trial_runs, trials_identity, validation_of
from trl_opd.boards.spec import BoardSpec

SETTLED = (FINISHED, FAILED)


def settle_trials(spec: BoardSpec, to_do: Collection[str] = ()) -> list[str]:
    """Choose the rate of every method whose trials have all ended since; to be called whenever a run has ended.

    A trial that failed does not count, and a recorded choice stays: its trials are not tried again. Where all trials of
    a method failed, they are when the board is started again.

    Args:
        spec (`BoardSpec`):
            The board.
        to_do (`Collection[str]`):
            Names of runs that this board will still try. A trial that failed under an earlier board, which was stopped
            before the choice, has not ended: what is chosen must not depend on which trial comes first.

    Returns:
        `list[str]`: A sentence for each choice that was made.
    """
    if spec.trials is None:
        return []
    told = []
    for method in spec.methods:
        recorded = choice_of(spec, method)
        runs = trial_runs(spec, method)
        states = [status_of(run).state for run in runs]
        ended = all(state in SETTLED for state in states) and not any(run.name in to_do for run in runs)
        if (recorded and recorded.learning_rate) or not ended:
            continue
        trials = tuple(trial_of(spec, run) for run in runs)
        choice = Choice(chosen_rate(trials), trials)
        if choice == recorded:
            continue
        write_choice(spec, method, trials_identity(spec, method), choice)
        told.append(_sentence(method.name, choice))
    return told


def trial_of(spec: BoardSpec, run: Run) -> Trial:
    """A trial as its files stand."""
    status = status_of(run)
    accuracy = judged(validation_of(run), spec.checkpoint.rule) if status.state == FINISHED else None
    return Trial(run.name, run.learning_rate, accuracy, status.state, status.error)


def _sentence(name: str, choice: Choice) -> str:
    if choice.learning_rate is None:
        return f"{name}: all {len(choice.trials)} learning-rate trials failed, so it is not trained further"
    shown = ", ".join(
        f"{trial.learning_rate:g}: {'failed' if trial.validation is None else f'{100 * trial.validation:.1f} %'}"
        for trial in choice.trials
    )
    return f"{name}: learning rate {choice.learning_rate:g} chosen on validation ({shown})"
