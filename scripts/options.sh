# Sourced by the other shell scripts: answers --help, with what the script says at its top, and --version.
case " $* " in
  *" --help "* | *" -h "*)
    sed -n '2,/^[^#]/{/^#/{s/^#\( \|$\)//;p;};}' "$0"
    exit
    ;;
  *" --version "*)
    sed -n 's/^__version__ = "\(.*\)"$/rt-plugin \1/p' "$(dirname "$0")/../rt_plugin/_version.py"
    exit
    ;;
esac
