package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		lists [][]string
		want  mountOptions
	}{
		{nil, mountOptions{}},
		{[][]string{{""}}, mountOptions{}},
		{[][]string{{"rw,noatime,nofail,_netdev,x-systemd.automount,X-mount.mkdir,comment=x,user=joe,auto,defaults"}}, mountOptions{}},
		{[][]string{{"ro,allow_other"}, {"nonempty"}}, mountOptions{readOnly: true, allowOther: true, nonEmpty: true}},
		{[][]string{{"ro", "rw"}}, mountOptions{}},
		{[][]string{{"no_io_uring"}}, mountOptions{noRings: true}},
		{[][]string{{"no_io_uring"}, {"io_uring"}}, mountOptions{}},
		{[][]string{{"ro"}, {"rw", "ro"}}, mountOptions{readOnly: true}},
		{[][]string{{"suid,nosuid,noexec"}}, mountOptions{kernel: []string{"suid", "nosuid", "noexec"}}},
		{[][]string{{"cmk=local:/a=b,cmk=local:/c"}}, mountOptions{cmks: []string{"local:/a=b", "local:/c"}}},
		{[][]string{{"endpoint=huawei/r=https://x/?a=b"}}, mountOptions{endpoints: []string{"huawei/r=https://x/?a=b"}}},
		{[][]string{{"log=/a"}, {"log=/b,config=/c"}}, mountOptions{log: "/b", config: "/c"}},
	} {
		got, err := mergedOptions(c.lists...)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v", c.lists, got, err)
		}
	}
	for _, bad := range []string{"bogus", "ro=1", "cmk", "cmk=", "log", "remount", "allow_other=yes", "ro, rw", "uid=0"} {
		var o mountOptions
		if err := parseOptions(&o, bad); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestHelperArgs(t *testing.T) {
	for args, want := range map[string]string{
		"h /c /p":                           "h mount /c /p",
		"h /c /p -o ro,nofail":              "h mount -o ro,nofail /c /p",
		"h /c /p -sn -v -t kmsfs -o a -o b": "h mount -o a -o b /c /p",
		"h --help":                          "h help",
		"h -V":                              "h version",
	} {
		got, err := helperArgs(strings.Fields(args))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v", args, got, err)
		}
	}
	for _, bad := range []string{"h /c /p -o", "h /c /p -f", "h /c /p -sf", "h /c /p -N 3", "h /c /p -x", "h --bogus /c /p"} {
		if _, err := helperArgs(strings.Fields(bad)); exitCode(err) != exitUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"--foreground", "--log", "mount", "umount", "-o"}
	for given, want := range map[string]string{
		"mouny": "; did you mean mount?", "umonut": "; did you mean umount?", "--forground": "; did you mean --foreground?", "--lg": "; did you mean --log?",
		"-x": "", "": "", "completely": "",
	} {
		if got := didYouMean(given, names); got != want {
			t.Errorf("%q: %q", given, got)
		}
	}
}
