"""The drop folder: a file that is put into it is worked on, and then lies in ``done/`` or ``failed/``.

docs/drop-folder.md says how it looks to those who use it. A file is claimed by one atomic rename into
``.claimed/JOB/``, where JOB is the id of the job that it becomes: whatever dies in between, the next look into the
folder sees what is still to be done.

`incoming` sees what is complete (`settling`), `claims` takes it, `away` puts it where it belongs afterwards;
`grounds` is the folder with its lock, `watching` tells when to look, `folder` brings them together.
"""

from daemon.drop.folder import DropFolder
from daemon.drop.grounds import DropError

__all__ = ["DropError", "DropFolder"]
