"""Scoring a stored run anew, with the scorer and the answers of today; its completions stay as they are."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark
from trl_opd.evals.calibration import LM_EVAL
from trl_opd.evals.engines import Request
from trl_opd.evals.pipeline import ScoringThreads
from trl_opd.evals.results import StoredRun, read_run
from trl_opd.evals.rows import load_rows, rows_sha256
from trl_opd.evals.runner import Job, Summary, checked_workers, finish, prompts_sha256, show_progress
from trl_opd.evals.scorers import make_scorer
from trl_opd.evals.store import SCORING, RunStore, key_of
from trl_opd.evals.suites import load_suite


def rescore(
    folder: Path,
    *,
    benchmark: Benchmark | None = None,
    data_dir: Path | None = None,
    errata: bool = True,
    allow_other_data: bool = False,
    workers: int | None = None,
    sandbox: str | None = None,
    command: str | None = None,
    progress: bool = False,
) -> Summary | None:
    """Score all completions of a run anew. The old verdicts stay in the folder; the new ones are in force.

    Args:
        folder (`Path`): The run.
        benchmark (`Benchmark`, *optional*): What was asked, if the run's benchmark is not one of ours.
        data_dir (`Path`, *optional*): Folder with local copies of the data.
        errata (`bool`, defaults to `True`): Correct or leave out the rows that are known to be wrong.
        allow_other_data (`bool`, defaults to `False`): Take rows that are not the benchmark's; the manifest says so.
        workers (`int`, *optional*): Completions scored at the same time; the number of cores by default.
        sandbox (`str`, *optional*): What programs run in, see `trl_opd.verify.code.CodeVerifier`.
        command (`str`, *optional*): The command line, for the manifest.
        progress (`bool`, defaults to `False`): Show progress on the error stream.

    Returns:
        `Summary` or `None`: The metrics; none where the run is not finished, which `evaluate` can do now.

    Raises:
        UserError: There is no such run, another process works on it, or the benchmark asks something else by now.
    """
    workers = checked_workers(workers)
    stored = read_run(folder)
    benchmark = benchmark or _benchmark_of(stored)
    job = _job(stored, benchmark, data_dir, errata, allow_other_data)
    scorer = make_scorer(benchmark, workers, sandbox)
    settings = {**job.settings, "scorer": scorer.identity()}
    job = replace(job, settings=settings)
    session = {"command": command, "rescored": True, "workers": workers, "scorer": scorer.details()}
    by_id = {problem.id: problem for problem in job.problems}
    with closing(scorer), RunStore(folder, settings, session, rescore=True) as store:
        if store.summary is None:
            with ScoringThreads(store, scorer, by_id, workers) as threads, show_progress(store, job, progress) as tick:
                threads.score_rest(tick)
            if stored.summary is None:
                store.switch()
                return None
            finish(store, job)
        return Summary.from_json(store.summary)


def _benchmark_of(stored: StoredRun) -> Benchmark:
    name = stored.manifest["settings"]["benchmark"]
    if name.startswith(LM_EVAL):
        raise UserError(f"{stored.folder} is a run of lm-eval's own task {name}: its verdicts are lm-eval's alone.")
    benchmarks = load_suite(name)
    if [benchmark.name for benchmark in benchmarks] != [name]:
        raise UserError(f"{stored.folder} is a run of {name!r}, which is a suite by now: pass --benchmark FILE.yaml.")
    return benchmarks[0]


def _job(stored: StoredRun, benchmark: Benchmark, data_dir: Path | None, errata: bool, allow_other_data: bool) -> Job:
    """The run's problems as they are by now, and its completions that belong to them.

    Of a finished run the problems are those that have completions, in whatever way they were chosen then.
    """
    settings = stored.manifest["settings"]
    drawn = sorted(map(key_of, stored.generations()))
    finished = stored.summary is not None
    if finished:
        benchmark, limit = replace(benchmark, window=None), None
        chosen = {problem_id for problem_id, _ in drawn}
    else:
        limit = settings["problems"]
        chosen = None
    as_asked, rows = (
        load_rows(benchmark, data_dir, limit, errata=mended, allow_other_data=allow_other_data)
        for mended in (errata and not finished, errata)
    )
    asked = [problem for problem in as_asked.problems if chosen is None or problem.id in chosen]
    if benchmark.name != settings["benchmark"] or settings["prompts"] not in (None, prompts_sha256(benchmark, asked)):
        raise UserError(
            f"{benchmark.name} does not ask what {stored.folder} answers (benchmark {settings['benchmark']}): its "
            f"prompts or its problems are others by now, so evaluate again in another folder."
        )
    problems = [problem for problem in rows.problems if chosen is None or problem.id in chosen]
    known = {problem.id for problem in problems}
    order = {problem.id: number for number, problem in enumerate(problems)}
    keys = sorted((key for key in drawn if key[0] in known), key=lambda key: (order[key[0]], key[1]))
    scoring = {name: value for name, value in rows.settings().items() if name in SCORING}
    scoring["data"] = rows_sha256(problems)
    return Job(benchmark, problems, [Request(*key, [], 0) for key in keys], None, {**settings, **scoring})
