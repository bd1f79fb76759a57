"""What ``poseward doctor`` looks at. One module a theme; `daemon.doctor.checks` lists all checks.

This package's first line of import must stay cheap and free of other packages: `daemon.doctor.inside` runs in the
stages' own interpreters, which may have nothing installed.
"""
