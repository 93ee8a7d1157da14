"""AgentDojo's suites against any model (arXiv 2406.13352): an agent, its tasks, and injections in its data.

    run.py       serve the models, start the script, import its logs as a study
    suites.py    the script, for the interpreter of another environment that has AgentDojo
    endpoint.py  the model, as AgentDojo asks it
    graders.py   the graders of AgentDojo that accept a wrong execution, replaced

heredity does not depend on AgentDojo and never imports it.
"""

from heredity.lab.agentdojo.run import AgentRun, ConversationCounts, check, run, serving, study_of

__all__ = ["AgentRun", "ConversationCounts", "check", "run", "serving", "study_of"]
