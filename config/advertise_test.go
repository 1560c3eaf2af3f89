package config

import (
	"errors"
	"net/netip"
	"os"
	"testing"
)

func TestAdvertise(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(list ...string) func() ([]netip.Addr, error) {
		return func() ([]netip.Addr, error) {
			var out []netip.Addr
			for _, s := range list {
				out = append(out, netip.MustParseAddr(s))
			}
			return out, nil
		}
	}
	tests := []struct {
		name, bind, given string
		interfaces        func() ([]netip.Addr, error)
		want              string
	}{
		{"bound", "10.0.0.5:80", "", addrs("10.0.0.9"), "10.0.0.5:80"},
		{"given", "0.0.0.0:80", "gate:90", addrs("10.0.0.9"), "gate:90"},
		{"wildcard", "0.0.0.0:80", "", addrs("127.0.0.1", "169.254.0.1", "10.0.0.9", "10.0.0.10"), "10.0.0.9:80"},
		{"no host", ":80", "", addrs("::1", "fe80::1", "fd00::1", "10.0.0.9"), "10.0.0.9:80"},
		{"IPv6", "[::]:80", "", addrs("::1", "fe80::1", "fd00::1"), "[fd00::1]:80"},
		{"loopback only", "0.0.0.0:0", "", addrs("127.0.0.1", "::1"), host + ":0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &Loaded{sources: map[string]string{}}
			l.Config = Config{ID: "a", HTTPAddr: tt.bind, HTTPAdvertise: tt.given, RaftAddr: "x:1", GossipAddr: "y:2"}
			if err := l.derive(tt.interfaces); err != nil {
				t.Fatal(err)
			}
			if l.Config.HTTPAdvertise != tt.want || l.Config.RaftAdvertise != "x:1" || l.Config.GossipAdvertise != "y:2" {
				t.Errorf("advertises %q, want %q", l.Config.HTTPAdvertise, tt.want)
			}
		})
	}
	l := &Loaded{Config: Config{ID: "a", HTTPAddr: ":1"}, sources: map[string]string{}}
	if err := l.derive(func() ([]netip.Addr, error) { return nil, errors.New("no netlink") }); err == nil {
		t.Error("an unknown address was accepted")
	}
}

// What Kubernetes sets must never be mistaken for a setting, nor a setting for it.
func TestNoSettingIsIgnored(t *testing.T) {
	for _, s := range table() {
		if ignoredVariable(s.env()) {
			t.Errorf("%s is ignored", s.env())
		}
	}
}
