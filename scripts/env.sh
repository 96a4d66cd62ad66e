# Sourced by the scripts that run Drivetrain: finds Python and Java, prepares .drivetrain/ once, sets the environment.
# The checks stand here, in bash, because they must be quick on every call and must work where there is no Python.

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
home=${DRIVETRAIN_HOME:-$root/.drivetrain}
[[ $home == /* ]] || home=$PWD/$home
venv_python=$home/venv/bin/python

# Prints the first fit Python; else, on stderr, what is wrong with each candidate.
find_python() {
  local candidate said fit='' first=${DRIVETRAIN_PYTHON-}
  local probe='import sys
v = sys.version_info
if not (3, 10) <= v[:2] <= (3, 12): sys.exit("is %d.%d" % v[:2])
if sys.argv[1] == "pip":
    try: import venv, ensurepip
    except ImportError: sys.exit("%d.%d lacks venv (apt-get install python%d.%d-venv)" % (v[:2] * 2))'
  local installer=pip
  uv --version >/dev/null 2>&1 && installer=uv
  # The one that the environment was made with comes before a newer one: changing it means to install all anew.
  [[ -n $first || ! -r $home/stamp ]] || first=$(sed -n 2p "$home/stamp")
  for candidate in ${first:+"$first"} python3.12 python3.11 python3.10 python3 python; do
    if ! command -v "$candidate" >/dev/null; then
      [[ $candidate != "${DRIVETRAIN_PYTHON-}" ]] || fit+="; DRIVETRAIN_PYTHON=$candidate is not there"
    elif said=$("$candidate" -c "$probe" $installer 2>&1); then
      [[ -z ${DRIVETRAIN_PYTHON-} || $candidate == "$DRIVETRAIN_PYTHON" ]] ||
        echo "drivetrain: using $candidate$fit" >&2
      echo "$candidate"
      return
    else
      [[ $said =~ ^(is\ |[0-9.]+\ lacks) ]] || said='does not run'
      fit+="; $candidate $said"
    fi
  done
  echo "drivetrain: no Python 3.10 to 3.12 found${fit}. Install one: apt-get install python3 python3-venv" \
    "(or name one in DRIVETRAIN_PYTHON)" >&2
  return 3
}

java_version() {  # of $1; starting a JVM to ask takes 50 ms and more, so the release file beside it is asked first
  local release word version
  release=$(dirname "$(dirname "$(readlink -f "$1")")")/release
  if [[ -r $release ]]; then
    while IFS='="' read -r word _ version _; do
      [[ $word != JAVA_VERSION ]] || { echo "$version"; return; }
    done <"$release"
  fi
  if [[ -r $home/java && $home/java -nt $1 ]]; then
    IFS='|' read -r word version <"$home/java"
    [[ $word != "$1" ]] || { echo "$version"; return; }
  fi
  version=$("$1" -version 2>&1) && [[ $version =~ version\ \"([0-9][^\"]*)\" ]] || return
  echo "${BASH_REMATCH[1]}"
  [[ ! -d $home ]] || echo "$1|${BASH_REMATCH[1]}" 2>/dev/null >"$home/java" || true
}

# Sets $java; else says on stderr what is wrong with it.
find_java() {
  local install='Install one: apt-get install openjdk-17-jre-headless' version major
  if [[ -n ${JAVA_HOME-} ]]; then
    java=$JAVA_HOME/bin/java
    [[ -x $java ]] || { echo "drivetrain: JAVA_HOME=$JAVA_HOME holds no bin/java. Correct it, or unset it to use the java on PATH" >&2; return 3; }
  else
    java=$(command -v java) || { echo "drivetrain: no Java found, 17 or newer is needed. $install" >&2; return 3; }
  fi
  version=$(java_version "$java")
  major=${version#1.}  # Java 8 calls itself 1.8
  major=${major%%[!0-9]*}
  [[ -n $major ]] || { echo "drivetrain: $java does not run, Java 17 or newer is needed. $install" >&2; return 3; }
  ((major >= 17)) || { echo "drivetrain: $java is Java $version, 17 or newer is needed. $install" >&2; return 3; }
}

# Is what the stamp $1 says still so? Its lines: a hash of the given lock files, and the Python chosen then.
fresh() {
  local stamp=$home/$1 now was python
  shift
  [[ -r $stamp && -x $venv_python ]] || return
  { read -r was && read -r python; } <"$stamp"
  now=$(cd "$root/locks" && cat "$@" | sha256sum)
  [[ $was == "${now%% *}" && ${DRIVETRAIN_PYTHON:-$python} == "$python" ]]
}

# Leaves a virtual environment and jars in $home that fit locks/; prepare run, or prepare dev for the tests' tools too.
prepare() {
  local python wrong=0
  find_java || wrong=3
  if [[ $1 == run ]] && fresh stamp build.txt run.txt jars.txt; then return $wrong; fi
  if [[ $1 == dev ]] && fresh stamp-dev build.txt run.txt jars.txt dev.txt; then return $wrong; fi
  python=$(find_python) || wrong=3
  ((wrong == 0)) || return $wrong
  PYTHONPATH=$root/lib "$python" "$root/scripts/prepare.py" "$1" --home "$home" --java "$java" --python "$python"
}

use_environment() {
  export PYTHONPATH=$root/lib${PYTHONPATH:+:$PYTHONPATH} DRIVETRAIN_HOME=$home
  export PYSPARK_PYTHON=$venv_python PYSPARK_DRIVER_PYTHON=$venv_python
  # Programs that keep caches at home get another place where there is no home to write to.
  [[ -n ${HOME-} && -w $HOME ]] || export MPLCONFIGDIR=${MPLCONFIGDIR:-$home/cache/matplotlib}
}

use_pyspark() {  # for programs that start pyspark without spark-submit, as tests and benchmarks do; with Java options $1
  local jars=("$home"/jars/*.jar) spark=("$home"/venv/lib/python*/site-packages/pyspark) all options
  all=$(IFS=, && echo "${jars[*]}")
  options="\"-Dderby.stream.error.file=$home/run/derby.log\""
  options+=" \"-Dlog4j2.configurationFile=file://${root// /%20}/conf/log4j2.properties\""
  options+=" -XX:-DontCompileHugeMethods ${1-}"  # the first as conf/base.yaml has it
  export SPARK_HOME=${spark[0]}
  export PYSPARK_SUBMIT_ARGS="--jars '$all' --driver-java-options '$options' pyspark-shell"
}
