#!/bin/sh
# Removes what `olora-installer.sh` put on this machine, and what olora keeps for itself: the binary, the lines
# in the shells' start-up files, the folder with the receipt, and the cache of tokens. It leaves what you made
# (runs, adapters, recipes) and what is shared with other programs: models of the hub in `~/.cache/huggingface`,
# and kernels of the GPU in `~/.cache/cubecl`, which every program on Burn uses. If they are there, it says so.
#
#     sh uninstall.sh               # asks nothing
#     sh uninstall.sh --keep-cache  # leaves ~/.cache/olora
#
# It looks where the install script looks: OLORA_INSTALL_DIR, XDG_CONFIG_HOME and ZDOTDIR have the same meaning,
# and OLORA_CACHE and XDG_CACHE_HOME are olora's own. An `olora` that `cargo install` put elsewhere stays.
set -eu

say() { printf '%s\n' "$*"; }

keep_cache=0
case "${1:-}" in
  "") ;;
  --keep-cache) keep_cache=1 ;;
  *)
    say "unknown option $1: there is --keep-cache, and no other" >&2
    exit 2
    ;;
esac

# Some distributions do not set HOME; the install script asks the same way.
home=${HOME:-$(getent passwd "$(id -un)" | cut -d: -f6)}
config=${XDG_CONFIG_HOME:-$home/.config}/olora
receipt=$config/olora-receipt.json

# Where the binary is: as said, else as the receipt says, else where it goes by default.
directory=${OLORA_INSTALL_DIR:-}
if [ -z "$directory" ] && [ -f "$receipt" ]; then
  directory=$(sed -n 's/.*"install_prefix":"\([^"]*\)".*/\1/p' "$receipt")
fi
directory=${directory:-$home/.local/bin}

removed=0
gone() {
  say "removed $1"
  removed=1
}

if [ -f "$directory/olora" ]; then
  rm -f "$directory/olora"
  gone "$directory/olora"
fi

# The line that the install script added, in either of its spellings, and the empty line that it put before.
# Written back into the same file, so that its owner, mode and links stay.
short=$(printf '%s' "$config/env.sh" | sed "s,^$home/,\$HOME/,")
clean() {
  if [ ! -f "$1" ] || ! grep -q -F -x -e ". \"$short\"" -e ". \"$config/env.sh\"" "$1"; then return 0; fi
  kept=$(mktemp)
  awk -v one=". \"$short\"" -v other=". \"$config/env.sh\"" '
    $0 == one || $0 == other { held = 0; next }
    held { print "" }
    { held = ($0 == ""); if (!held) print }
    END { if (held) print "" }' "$1" >"$kept"
  cat "$kept" >"$1"
  rm -f "$kept"
  gone "a line in $1"
  # A start-up file that is empty then was made by the install script, or says as much as none.
  [ -s "$1" ] || rm -f "$1"
}
for file in .profile .bashrc .bash_profile .bash_login; do clean "$home/$file"; done
for file in .zshrc .zshenv; do clean "${ZDOTDIR:-$home}/$file"; done

fish=$home/.config/fish/conf.d/olora.env.fish
if [ -f "$fish" ]; then
  rm -f "$fish"
  gone "$fish"
fi

for file in env.sh env.fish olora-receipt.json; do
  if [ -f "$config/$file" ]; then
    rm -f "$config/$file"
    gone "$config/$file"
  fi
done

# Of a folder that OLORA_CACHE names, only what olora puts there: it may hold other things.
cache=${OLORA_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/olora}
if [ "$keep_cache" = 0 ] && [ "$cache" != off ]; then
  for part in tokens uploads; do
    if [ -d "$cache/$part" ]; then
      rm -rf "${cache:?}/$part"
      gone "$cache/$part"
    fi
  done
  rmdir "$cache" "$home/.cache" 2>/dev/null || true
fi

for shared in "${XDG_CACHE_HOME:-$home/.cache}/cubecl" "${HF_HOME:-${XDG_CACHE_HOME:-$home/.cache}/huggingface}"; do
  [ ! -d "$shared" ] || say "left $shared, which other programs use too"
done

# Folders that are empty now, from the inside out; one that holds anything is left.
for folder in "$config" "${config%/olora}" "$home/.config/fish/conf.d" "$home/.config/fish" "$home/.config" \
  "$directory" "$home/.local/bin" "$home/.local"; do
  rmdir "$folder" 2>/dev/null || true
done

[ "$removed" = 1 ] || say "found nothing of olora's to remove, in $directory, $config and $cache"
