package integration

import "strings"

// badCommands are the ways to use wrongly that all commands share, beside those that have rows of their own.
func badCommands() []badInput {
	var rows []badInput
	// A command, with the flags that it cannot do without, and the names of its operands.
	for _, c := range []struct{ command, operands string }{
		{"fsck", "CIPHERDIR"}, {"rewrap", "CIPHERDIR"}, {"rotate", "CIPHERDIR"}, {"rotate --re-encrypt", "CIPHERDIR"}, {"reencrypt", "CIPHERDIR"}, {"keyring check", "CIPHERDIR"},
		{"status", "MOUNTPOINT"},
		{"sign --cmk acs:kms:cn-hangzhou:1:key/x", "FILE_OR_CIPHERDIR"},
		{"verify --public-key $R/none", "SIGNATURE_OR_MANIFEST FILE_OR_CIPHERDIR"},
		{"recover", "SRC DST"},
		{"encrypt --cmk local:$K", "IN OUT"}, {"decrypt", "IN OUT"}, {"data encrypt --cmk local:$K", "IN OUT"}, {"data decrypt", "IN OUT"},
		{"secret get", "URI"}, {"secret create", "URI FILE"},
		{"key public", "CMK"},
	} {
		names := strings.Fields(c.operands)
		full := strings.Repeat(" $R/x", len(names))
		rows = append(rows,
			badInput{name: c.command + " without operands", args: c.command, code: exitUsage, says: names[0] + " is missing"},
			badInput{name: c.command + " with one too many", args: c.command + full + " $R/y", code: exitUsage, says: `"$R/y" is one too many`},
			badInput{name: c.command + " with an empty one", args: c.command + strings.Repeat(" ''", len(names)), code: exitUsage, says: "operand 1 of .* is empty"},
			badInput{name: c.command + " with a late flag", args: c.command + full + " --config x", code: exitUsage, says: "--config stands after $R/x"},
			badInput{name: c.command + " with an unknown flag", args: c.command + " --bogus" + full, code: exitUsage, says: "--bogus"},
		)
		if c.operands != "CIPHERDIR" {
			continue
		}
		rows = append(rows,
			badInput{name: c.command + " of nothing", args: c.command + " $R/none", code: exitNotVolume, says: "$R/none.*no such"},
			badInput{name: c.command + " of a file", args: c.command + " $K", code: exitNotVolume, says: "$K.*not a directory"},
			badInput{name: c.command + " of a directory", args: c.command + " $R", code: exitNotVolume, says: "$R has no .kmsfs"},
			badInput{name: c.command + " without trust", args: c.command + " $V", env: "KMSFS_CONFIG_DIR=$R/conf", code: exitCMK, says: "$V: no CMK is trusted"},
			badInput{name: c.command + " of somebody else's", args: c.command + " $V", env: "KMSFS_CONFIG_DIR=$R/conf", user: true, code: exitOther, says: "$V.*permission denied"},
			badInput{name: c.command + " without a home", args: c.command + " $V", env: "KMSFS_CONFIG_DIR= XDG_CONFIG_HOME= HOME=", user: true, code: exitUsage, says: "KMSFS_CONFIG_DIR"},
		)
	}
	return append(rows,
		badInput{name: "log is a FIFO that nobody reads", setup: "mkfifo f", args: "mount --log $R/f $V $P", code: exitOther, says: "--log.*$R/f"},
		badInput{name: "recover into what exists", setup: "touch dst", args: "recover --volume $V $K $R/dst", code: exitOther, says: "$R/dst.*exists"},
		badInput{name: "recover what is no ciphertext", args: "recover --volume $V $K $R/dst", code: exitNotVolume, says: "$K: nothing recovered"},
		badInput{name: "encrypt a directory", args: "encrypt --cmk local:$K $V $R/out", code: exitOther, says: "$V: is a directory"},
		badInput{name: "encrypt into no directory", args: "encrypt --cmk local:$K $K $R/none/out", code: exitOther, says: "$R/none"},
		badInput{name: "encrypt on a full disk", setup: fullDisk, cleanup: "umount disk", args: "encrypt --cmk local:$K $K $R/disk/out", code: exitIO, says: "disk/out.*no space"},
		badInput{name: "encrypt on a read-only disk", setup: readOnlyDisk, cleanup: "umount disk", args: "encrypt --cmk local:$K $K $R/disk/out", code: exitIO, says: "disk/out.*read-only"},
		badInput{name: "decrypt what is no ciphertext", setup: "head -c 5000 /dev/zero > x", args: "decrypt $R/x $R/out", code: exitNotVolume, says: "$R/x"},
		badInput{name: "decrypt a cut ciphertext", setup: "$KMSFS encrypt --cmk local:$K $K x; truncate -s -1 x", args: "decrypt --cmk local:$K $R/x $R/out", code: exitDamaged, says: "$R/x"},
		badInput{name: "sign under a local CMK", args: "sign --cmk local:$K $K", code: exitUsage, says: "local:$K cannot sign"},
		badInput{name: "verify a FIFO", setup: "mkfifo f", args: "verify --public-key $R/f $K $K", code: exitUsage, says: "$R/f is not a regular file"},
	)
}
