package main

import (
	"os"
	"slices"
	"testing"
)

// TestAbsolutePaths has everything that a daemon may read later, such as the certificates of a cloud that it has not asked yet, named by absolute paths.
func TestAbsolutePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got := absolutePaths([]string{"KMSFS_CONFIG_DIR=conf", "CREDENTIALS_DIRECTORY=cmks", "SSL_CERT_FILE=tls/ca.pem", "HUAWEICLOUD_SDK_CREDENTIALS_FILE=/etc/h", "HOME=", "LANG=C"})
	want := []string{"KMSFS_CONFIG_DIR=" + dir + "/conf", "CREDENTIALS_DIRECTORY=" + dir + "/cmks", "SSL_CERT_FILE=" + dir + "/tls/ca.pem", "HUAWEICLOUD_SDK_CREDENTIALS_FILE=/etc/h", "HOME=", "LANG=C"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
