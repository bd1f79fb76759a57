"""What is kept on disk: the `journal` of committed frames while a job is in work, the results `stream` when it is done.

Reading is one function::

    from stages.results import read_results

    with read_results("results/clip") as results:
        for record in results:
            print(record.frame, [track.id for track in record.tracks])
"""

from stages.results.stream import Results, ResultsError, read_results

__all__ = ["Results", "ResultsError", "read_results"]
