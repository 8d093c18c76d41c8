@echo off
rem Finds a Python version that torch supports and runs gptlab\cli\bootstrap.py with it.
rem   setup --demo    from nothing to a model that writes    setup --help    the rest
setlocal
set "PYTHON_MANAGER_AUTOMATIC_INSTALL=false"
for %%V in (3.14 3.13 3.12 3.11 3.10) do (
    py -%%V -c "import ensurepip, venv" >nul 2>&1 && set "python=py -%%V" && goto found
)
for %%P in (python python3) do (
    %%P -c "import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14)))" >nul 2>&1 && set "python=%%P" && goto found
)
echo setup: torch needs Python 3.10 to 3.14, and there is none here: install one from https://www.python.org/downloads and run this again. 1>&2
exit /b 2

:found
%python% -I "%~dp0gptlab\cli\bootstrap.py" %*
exit /b %errorlevel%
