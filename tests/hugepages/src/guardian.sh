# Borrows for somebody who may be killed at any moment: changes a setting of the kernel, says so, waits until the borrower's
# end of the pipe is closed, and changes it back.
#
#   guardian.sh pages FOLDER -s|-x COUNT   adds COUNT huge pages to the pool in FOLDER and says how many came
#   guardian.sh value FILE -x VALUE        chooses VALUE of those that FILE lists, as `a [b] c`
#
# The locks are on the kernel's own files: nothing is left behind, and every user of the host can take them.
trap '' HUP INT TERM PIPE
what=$1 place=$2 lock=$3 wanted=$4
nr=$place/nr_hugepages

# Pages in use that were asked back count as surplus. The kernel takes each when its last user is gone.
lasting() { echo $(($(cat "$nr") - $(cat "$place/surplus_hugepages"))); }

# change N: makes the pool N pages larger or smaller. A difference, so that what others do meanwhile stays.
change() {
  flock -x 9
  before=$(lasting)
  echo $((before + $1)) >"$nr"
  changed=$(($(lasting) - before))
  flock -u 9
}

case $what in
pages)
  exec 8<"$place/free_hugepages" 9<"$nr"
  flock "$lock" 8
  changed=0
  [ "$wanted" -eq 0 ] || change "$wanted"
  added=$changed
  echo "$added"
  cat >/dev/null
  [ "$added" -eq 0 ] || change $((-added))
  ;;
value)
  exec 8<"$place"
  flock "$lock" 8
  old=$(sed 's/.*\[\(.*\)\].*/\1/' "$place")
  echo "$wanted" >"$place" && echo 1 || echo 0
  cat >/dev/null
  echo "$old" >"$place"
  ;;
esac
