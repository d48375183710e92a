package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// mountOptions is what -o says.
type mountOptions struct {
	readOnly, allowOther, nonEmpty bool
	kernel                         []string // suid, noexec and the like
	cmks, endpoints                []string
	log, config                    string
}

// ignoredOptions are words of fstab that are for others.
func ignoredOptions() []string {
	return strings.Fields(`auto noauto user nouser users owner group defaults nofail fail _netdev rw
	async nosuid nodev exec noatime atime relatime norelatime strictatime nodiratime diratime lazytime nolazytime default_permissions`)
}

// parseOptions reads comma-separated options.
func parseOptions(o *mountOptions, list string) error {
	for _, opt := range strings.Split(list, ",") {
		key, value, hasValue := strings.Cut(opt, "=")
		switch {
		case opt == "":
		case hasValue && key == "cmk":
			o.cmks = append(o.cmks, value)
		case hasValue && key == "endpoint":
			o.endpoints = append(o.endpoints, opt[len("endpoint="):])
		case hasValue && key == "log":
			o.log = value
		case hasValue && key == "config":
			o.config = value
		case opt == "ro":
			o.readOnly = true
		case opt == "allow_other":
			o.allowOther = true
		case opt == "nonempty":
			o.nonEmpty = true
		case opt == "suid" || opt == "dev" || opt == "noexec":
			o.kernel = append(o.kernel, opt)
		case strings.HasPrefix(opt, "x-") || key == "comment" || slices.Contains(ignoredOptions(), opt):
		default:
			return usagef("unknown mount option %q; known are ro, allow_other, nonempty, suid, dev, noexec, cmk=, endpoint=, log=, config=", opt)
		}
	}
	return nil
}

// helperArgs turns the arguments that mount(8) gives a helper, SOURCE TARGET [-sfnv] [-N ns] [-t type] [-o opts], into those
// of the mount command.
func helperArgs(args []string) ([]string, error) {
	var operands []string
	out := []string{args[0], "mount"}
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-o" || a == "-t" || a == "-N":
			if i++; i == len(args) {
				return nil, usagef("%s needs a value", a)
			}
			if a == "-o" {
				out = append(out, "-o", args[i])
			}
		case a == "-f":
			return nil, usagef("a fake mount is not possible")
		case strings.HasPrefix(a, "-") && strings.Trim(a[1:], "snv") == "":
		default:
			operands = append(operands, a)
		}
	}
	return append(out, operands...), nil
}

func optionsFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "o", Usage: "mount `OPTIONS`, comma-separated: ro, allow_other, nonempty, suid, dev, noexec, cmk=, endpoint=, log=, config="}
}
