# Removes what `olora-installer.ps1` put on this machine, and what olora keeps for itself: the program, the folder
# with the receipt, the cache of tokens, and the entry in the user's Path if nothing else is in that folder. It
# leaves what you made (runs, adapters, recipes) and what is shared with other programs, such as models of the hub.
#
#     powershell -ExecutionPolicy Bypass -File uninstall.ps1
#     powershell -ExecutionPolicy Bypass -File uninstall.ps1 -KeepCache
#
# It looks where the install script looks: OLORA_INSTALL_DIR and XDG_CONFIG_HOME have the same meaning. No Windows
# machine has run it yet.

param ([switch]$KeepCache)

$ErrorActionPreference = 'Stop'

$config = if ($env:XDG_CONFIG_HOME) { Join-Path $env:XDG_CONFIG_HOME 'olora' } else { Join-Path $env:LOCALAPPDATA 'olora' }
$receipt = Join-Path $config 'olora-receipt.json'

# Where the program is: as said, else as the receipt says, else where it goes by default.
$directory = $env:OLORA_INSTALL_DIR
if (-not $directory -and (Test-Path -LiteralPath $receipt)) {
    $directory = (Get-Content -Raw -LiteralPath $receipt | ConvertFrom-Json).install_prefix
}
if (-not $directory) { $directory = Join-Path $HOME '.local\bin' }

function Remove-Found($path) {
    if (Test-Path -LiteralPath $path) {
        Remove-Item -LiteralPath $path -Recurse -Force
        Write-Output "removed $path"
    }
}

function Test-Empty($path) {
    (Test-Path -LiteralPath $path) -and -not (Get-ChildItem -LiteralPath $path -Force | Select-Object -First 1)
}

Remove-Found (Join-Path $directory 'olora.exe')
Remove-Found $receipt

# Of a folder that OLORA_CACHE names, only what olora puts there: it may hold other things. Without that variable,
# XDG_CACHE_HOME or HOME, olora keeps no cache.
if (-not $KeepCache -and $env:OLORA_CACHE -ne 'off') {
    $cache = if ($env:OLORA_CACHE) { $env:OLORA_CACHE }
        elseif ($env:XDG_CACHE_HOME) { Join-Path $env:XDG_CACHE_HOME 'olora' }
        elseif ($env:HOME) { Join-Path $env:HOME '.cache\olora' }
    if ($cache) {
        foreach ($part in 'tokens', 'uploads') { Remove-Found (Join-Path $cache $part) }
        if (Test-Empty $cache) { Remove-Item -LiteralPath $cache }
    }
}
if (Test-Empty $config) { Remove-Item -LiteralPath $config }

# Other programs install into the same folder, and need it in Path.
if (-not (Test-Path -LiteralPath $directory) -or (Test-Empty $directory)) {
    if (Test-Path -LiteralPath $directory) { Remove-Item -LiteralPath $directory }
    # As it was written, not with its variables replaced, which is how the install script reads it too.
    $key = 'registry::HKEY_CURRENT_USER\Environment'
    $entries = (Get-Item -LiteralPath $key).GetValue('Path', '', 'DoNotExpandEnvironmentNames') -split ';' -ne ''
    $kept = @($entries | Where-Object { $_ -ne $directory })
    if ($kept.Count -ne @($entries).Count) {
        Set-ItemProperty -Type ExpandString -LiteralPath $key Path ($kept -join ';')
        # Tells programs that run of the change: setting any variable this way does.
        $name = 'olora-' + [guid]::NewGuid().ToString()
        [Environment]::SetEnvironmentVariable($name, 'x', 'User')
        [Environment]::SetEnvironmentVariable($name, [NullString]::value, 'User')
        Write-Output "removed $directory from your Path"
    }
}
