@echo off
rem Finds a Python that torch has wheels for and hands over to gptlab\cli\bootstrap.py.
rem   setup --demo    from nothing to a model that writes    setup --help    the rest
setlocal
set "PYTHON_MANAGER_AUTOMATIC_INSTALL=false"
for %%V in (3.14 3.13 3.12 3.11 3.10) do (
    py -%%V -c "import ensurepip, venv" >nul 2>&1 && set "python=py -%%V" && goto found
)
for %%P in (python python3) do (
    %%P -c "import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14)))" >nul 2>&1 && set "python=%%P" && goto found
)
echo setup: there is no Python 3.10 to 3.14 here, which torch needs: install one from https://www.python.org/downloads and run this again. 1>&2
exit /b 2

:found
%python% -I "%~dp0gptlab\cli\bootstrap.py" %*
exit /b %errorlevel%
