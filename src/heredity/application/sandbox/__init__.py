"""Tools that run: in a process of their own, which is ended if it takes too long or returns too much.

    process.py    this side of the pipe: asks, waits, and kills
    child.py      the other side: reads questions, writes answers
    functions.py  the process of Python functions
    mcp_client.py the process that talks to an MCP server
    leash.py      ends such a server with that process
    messages.py   what goes through the pipe

Promises: a tool that hangs, crashes, exits or floods its pipe ends in an answer with an error code.
Leaves to others: whether a tool runs at all, and its recorded results (toolbox.py). A process does
not confine its tools: they have the rights of the user.
"""
