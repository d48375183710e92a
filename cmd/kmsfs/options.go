package main

import (
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// mountOptions is what -o says. Of words that contradict each other the last counts, as for mount(8).
type mountOptions struct {
	readOnly, allowOther, nonEmpty bool
	noRings                        bool
	kernel                         []string // suid, noexec and the like, in order
	cmks, endpoints                []string
	log, config                    string
	keyTTL                         time.Duration // how often the CMKs are asked whether they still would; 0: never
}

// kernelOptions are handed to the kernel as they are.
func kernelOptions() []string {
	return []string{"suid", "nosuid", "dev", "nodev", "exec", "noexec"}
}

// ignoredOptions are words of fstab that are for others, or that ask for what is so anyway.
func ignoredOptions() []string {
	return strings.Fields(`auto noauto user nouser users owner group defaults nofail fail _netdev async
		noatime atime relatime norelatime strictatime nostrictatime nodiratime diratime lazytime nolazytime default_permissions`)
}

// parseOptions reads comma-separated options.
func parseOptions(o *mountOptions, list string) error {
	for opt := range strings.SplitSeq(list, ",") {
		key, value, hasValue := strings.Cut(opt, "=")
		if slices.Contains([]string{"cmk", "endpoint", "log", "config", "key-ttl"}, key) && value == "" {
			return usagef("mount option %s needs a value: %s=...", key, key)
		}
		switch {
		case opt == "":
		case key == "cmk":
			o.cmks = append(o.cmks, value)
		case key == "endpoint":
			o.endpoints = append(o.endpoints, value)
		case key == "log":
			o.log = value
		case key == "config":
			o.config = value
		case key == "key-ttl":
			ttl, err := time.ParseDuration(value)
			if err != nil || ttl < time.Second {
				return usagef("mount option key-ttl=%s is not a duration of at least 1s, such as 10m", value)
			}
			o.keyTTL = ttl
		case opt == "ro" || opt == "rw":
			o.readOnly = opt == "ro"
		case opt == "allow_other":
			o.allowOther = true
		case opt == "nonempty":
			o.nonEmpty = true
		case opt == "io_uring" || opt == "no_io_uring":
			o.noRings = opt == "no_io_uring"
		case slices.Contains(kernelOptions(), opt):
			o.kernel = append(o.kernel, opt)
		case opt == "remount":
			return usagef("mount option remount: a mounted volume cannot change its options; unmount it and mount it again")
		case strings.HasPrefix(opt, "x-") || strings.HasPrefix(opt, "X-") || key == "comment" || hasValue && key == "user" || slices.Contains(ignoredOptions(), opt):
		default:
			known := slices.Concat([]string{"ro", "rw", "allow_other", "nonempty", "io_uring", "no_io_uring"}, kernelOptions(), []string{"cmk=", "endpoint=", "log=", "config=", "key-ttl="})
			return usagef("unknown mount option %q%s\nhint: known are %s and what fstab says to others", opt, didYouMean(opt, known), strings.Join(known, ", "))
		}
	}
	return nil
}

// mergedOptions reads the options of the configuration file and, after them, so that they win, those of the command line.
func mergedOptions(lists ...[]string) (o mountOptions, err error) {
	for _, list := range slices.Concat(lists...) {
		if err := parseOptions(&o, list); err != nil {
			return o, err
		}
	}
	return o, nil
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
			if a == "-N" {
				return nil, usagef("-N %s: a volume is mounted in the mount namespace of the caller only", args[i])
			}
			if a == "-o" {
				out = append(out, "-o", args[i])
			}
		case a == "-h" || a == "--help":
			return []string{args[0], "help"}, nil
		case a == "-V" || a == "--version":
			return []string{args[0], "version"}, nil
		case len(a) > 1 && a[0] == '-' && strings.Trim(a[1:], "snvf") == "":
			if strings.Contains(a, "f") {
				return nil, usagef("%s: a fake mount is not possible", a)
			}
		case strings.HasPrefix(a, "-"):
			return nil, usagef("unknown flag %s; a helper of mount(8) takes SOURCE TARGET [-snv] [-o OPTIONS]", a)
		default:
			operands = append(operands, a)
		}
	}
	return append(out, operands...), nil
}

func optionsFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "o", Usage: "mount `OPTIONS`, comma-separated: ro, allow_other, nonempty, no_io_uring, suid, dev, noexec, cmk=, endpoint=, log=, config=, key-ttl="}
}
