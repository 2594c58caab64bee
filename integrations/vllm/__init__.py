"""vLLM: the score comes with the answer, with nothing switched off and no line of code.

    FASTRM_PROXY=proxy/ FASTRM_STORE=sqlite:///fastrm.db vllm serve MODEL

The way of a score, process by process:

    worker       `worker`    the step's final states -> keys into the `slots` buffer -> relevance, token numbers
    engine core  `ledger`    what the worker found out about a request, kept until its answer leaves
    front end    `frontend`  + question, answer, pictures -> assessment -> the answer; telemetry and store
    HTTP server  `responses` the assessment -> the object `fastrm` in the response

`plugin` is the entry point that vLLM calls in each of these processes. `internals` holds every touch of vLLM's own
classes; the other modules import nothing of vLLM.
"""
