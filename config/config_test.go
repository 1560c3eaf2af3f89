package config_test

import (
	"encoding/base64"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/settkv/sett/config"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// input is one set of sources.
type input struct {
	args []string
	env  []string
	yaml string
}

// load runs Load with the input; the file, if any, is sett.yaml in a fresh folder,
// and its folder is taken out of the error and of sources.
func load(t testing.TB, in input) (*config.Loaded, string, error) {
	t.Helper()
	dir := t.TempDir()
	args := in.args
	if in.yaml != "" {
		file := filepath.Join(dir, "sett.yaml")
		if err := os.WriteFile(file, []byte(in.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", file}, args...)
	}
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	config.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	l, err := config.Load(config.Sources{Flags: fs, Environ: in.env})
	return l, dir + string(filepath.Separator), err
}

func mustLoad(t testing.TB, in input) *config.Loaded {
	t.Helper()
	l, _, err := load(t, in)
	if err != nil {
		t.Fatalf("load %+v: %v", in, err)
	}
	return l
}

func TestDefaults(t *testing.T) {
	c, err := config.Default()
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	checks := []struct {
		name      string
		got, want any
	}{
		{"id", c.ID, host},
		{"data-dir", c.DataDir, "./sett-data"},
		{"http-addr", c.HTTPAddr, "127.0.0.1:8080"},
		{"http-advertise", c.HTTPAdvertise, "127.0.0.1:8080"},
		{"raft-addr", c.RaftAddr, "127.0.0.1:7000"},
		{"raft-advertise", c.RaftAdvertise, "127.0.0.1:7000"},
		{"gossip-addr", c.GossipAddr, "127.0.0.1:7946"},
		{"gossip-advertise", c.GossipAdvertise, "127.0.0.1:7946"},
		{"bootstrap-expect", c.BootstrapExpect, 0},
		{"join", len(c.Join), 0},
		{"nonvoter", c.Nonvoter, false},
		{"cluster-name", c.ClusterName, "sett"},
		{"gossip-key", len(c.GossipKeys), 0},
		{"max-key-bytes", c.MaxKeyBytes, uint64(4096)},
		{"max-value-bytes", c.MaxValueBytes, uint64(8 << 20)},
		{"max-request-bytes", c.MaxRequestBytes, uint64(32 << 20)},
		{"history-retention", c.HistoryRetention, time.Hour},
		{"history-retention-bytes", c.HistoryRetentionBytes, uint64(0)},
		{"max-inflight-bytes", c.MaxInflightBytes, int64(64 << 20)},
		{"replace-after", c.ReplaceAfter, 30 * time.Second},
		{"log-level", c.LogLevel, slog.LevelInfo},
		{"log-format", c.LogFormat, config.LogAuto},
		{"sync_writes", c.Badger.SyncWrites, false},
		{"value_threshold", c.Badger.ValueThreshold, int64(1 << 20)},
		{"gc", c.Badger.GCEnabled, true},
		{"gc interval", c.Badger.GCInterval, time.Minute},
	}
	for _, tt := range checks {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	// Invariant B9: what Badger allocates for memtables at its worst (two more than
	// asked, 1.3 times the size each) must leave most of 512 MiB to everything else.
	arena := c.Badger.MemTableBytes * 13 / 10 * int64(c.Badger.NumMemTables+2)
	if arena > 64<<20 {
		t.Errorf("memtables may take %d bytes, too much for a 512 MiB container", arena)
	}
	// A part of a command must fit 15 % of a memtable (invariant 10a), and the
	// threshold must fit it too or Badger refuses to open.
	if c.Badger.ValueThreshold > c.Badger.MemTableBytes*15/100 {
		t.Errorf("value threshold %d does not fit a transaction", c.Badger.ValueThreshold)
	}
}

func TestPrecedence(t *testing.T) {
	yaml := "raft-addr: 10.0.0.1:1\nbadger: {value_threshold: 300KiB}\n"
	env := []string{"SETT_RAFT_ADDR=10.0.0.1:2", "SETT_BADGER_VALUE_THRESHOLD=400000"}
	args := []string{"--raft-addr", "10.0.0.1:3", "--badger-value-threshold=500KB"}
	tests := []struct {
		name      string
		in        input
		addr      string
		threshold int64
		source    [2]string
	}{
		{"default", input{}, "127.0.0.1:7000", 1 << 20, [2]string{"default", "default"}},
		{"yaml", input{yaml: yaml}, "10.0.0.1:1", 300 << 10, [2]string{"yaml sett.yaml:1", "yaml sett.yaml:2"}},
		{"env over yaml", input{yaml: yaml, env: env}, "10.0.0.1:2", 400_000, [2]string{"env SETT_RAFT_ADDR", "env SETT_BADGER_VALUE_THRESHOLD"}},
		{"flag over env", input{yaml: yaml, env: env, args: args}, "10.0.0.1:3", 500_000, [2]string{"flag --raft-addr", "flag --badger-value-threshold"}},
		{"flag over yaml", input{yaml: yaml, args: args}, "10.0.0.1:3", 500_000, [2]string{"flag --raft-addr", "flag --badger-value-threshold"}},
		{"empty variable", input{yaml: yaml, env: []string{"SETT_RAFT_ADDR="}}, "10.0.0.1:1", 300 << 10, [2]string{"yaml sett.yaml:1", "yaml sett.yaml:2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, dir, err := load(t, tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if l.Config.RaftAddr != tt.addr || l.Config.Badger.ValueThreshold != tt.threshold {
				t.Errorf("got %s and %d, want %s and %d", l.Config.RaftAddr, l.Config.Badger.ValueThreshold, tt.addr, tt.threshold)
			}
			got := [2]string{l.Source("raft-addr"), l.Source("badger.value_threshold")}
			for i := range got {
				got[i] = strings.Replace(got[i], dir, "", 1)
			}
			if got != tt.source {
				t.Errorf("sources %q, want %q", got, tt.source)
			}
		})
	}
}

func TestConfigFileFromEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("id: from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l := mustLoad(t, input{env: []string{"SETT_CONFIG=" + file}}); l.Config.ID != "from-file" {
		t.Errorf("id %q", l.Config.ID)
	}
}

func TestLists(t *testing.T) {
	key := func(b byte, n int) string { return base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b}, n)) }
	want := []string{"a:1", "b:2", "c:3"}
	for name, in := range map[string]input{
		"flag with commas":    {args: []string{"--join", "a:1, b:2,c:3"}},
		"repeated flag":       {args: []string{"--join", "a:1", "--join=b:2,c:3"}},
		"variable":            {env: []string{"SETT_JOIN=a:1,b:2,c:3"}},
		"yaml list":           {yaml: "join: [a:1, b:2, 'c:3']"},
		"yaml text":           {yaml: "join: a:1,b:2,c:3"},
		"flag replaces":       {yaml: "join: [x:9]", args: []string{"--join", "a:1,b:2,c:3"}},
		"yaml block and more": {yaml: "---\n# peers\njoin:\n- a:1\n- b:2\n- c:3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if l := mustLoad(t, in); !slices.Equal(l.Config.Join, want) {
				t.Errorf("join %q", l.Config.Join)
			}
		})
	}
	t.Run("emptied by a flag", func(t *testing.T) {
		if l := mustLoad(t, input{yaml: "join: [x:9]", args: []string{"--join="}}); len(l.Config.Join) != 0 {
			t.Errorf("join %q", l.Config.Join)
		}
	})
	t.Run("keys", func(t *testing.T) {
		l := mustLoad(t, input{args: []string{"--gossip-key", key(1, 16) + "," + key(2, 32)}})
		if len(l.Config.GossipKeys) != 2 || len(l.Config.GossipKeys[0]) != 16 || l.Config.GossipKeys[1][0] != 2 {
			t.Errorf("keys %v", l.Config.GossipKeys)
		}
	})
}

func TestValues(t *testing.T) {
	l := mustLoad(t, input{
		args: []string{"--nonvoter", "--log-level=DEBUG", "--history-retention", "90"},
		env:  []string{"SETT_MAX_VALUE_BYTES=8mib", "SETT_MAX_INFLIGHT_BYTES=64MB", "SETT_REPLACE_AFTER=1m30s"},
		yaml: "max-request-bytes: 33554432\nbadger:\n  value_log_gc_interval_in_seconds: 120\n  value_log_gc_enabled: false\n  value_log_gc_discard_ratio: 0.7\n  memory_mode: false\n",
	})
	c := l.Config
	if !c.Nonvoter || c.LogLevel != slog.LevelDebug || c.HistoryRetention != 90*time.Second || c.MaxValueBytes != 8<<20 ||
		c.MaxInflightBytes != 64_000_000 || c.ReplaceAfter != 90*time.Second || c.MaxRequestBytes != 32<<20 ||
		c.Badger.GCInterval != 2*time.Minute || c.Badger.GCEnabled || c.Badger.GCDiscardRatio != 0.7 {
		t.Errorf("%+v", c)
	}
}

func TestIgnoredVariables(t *testing.T) {
	env := []string{"HOME=/", "SETTLE=1", "SETT_PORT=tcp://10.0.0.1:8080", "SETT_PORT_8080_TCP_ADDR=10.0.0.1", "SETT_SERVICE_HOST=10.0.0.1", "SETT_SERVICE_PORT_HTTP=8080"}
	for _, name := range config.ClientVariables {
		env = append(env, name+"=x")
	}
	mustLoad(t, input{env: env})
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name string
		in   input
		want string // the whole error, or a part of it when it ends in …
	}{
		{"unknown key", input{yaml: "id: a\nraft-adr: 10.0.0.1:1\n"}, `sett.yaml:2: unknown setting "raft-adr"; did you mean raft-addr?`},
		{"unknown nested key", input{yaml: "badger:\n  value_treshold: 1\n"}, `sett.yaml:2: unknown setting "badger.value_treshold"; did you mean badger.value_threshold?`},
		{"flag's name in YAML", input{yaml: "badger-value-threshold: 1MiB"}, `sett.yaml:1: unknown setting "badger-value-threshold": write it as "badger: {value_threshold: …}"`},
		{"underscores in YAML", input{yaml: "raft_addr: a:1"}, `sett.yaml:1: unknown setting "raft_addr": write it as "raft-addr"`},
		{"dotted key", input{yaml: "badger.value_threshold: 1MiB"}, `sett.yaml:1: unknown setting "badger.value_threshold"…`},
		{"scrub-interval", input{yaml: "scrub-interval: 1h"}, `sett.yaml:1: unknown setting "scrub-interval"…`},
		{"tls", input{yaml: "tls-cert: x"}, `sett.yaml:1: unknown setting "tls-cert"`},
		{"key twice", input{yaml: "id: a\nid: b\n"}, `sett.yaml:2: setting "id" is there twice`},
		{"badger twice", input{yaml: "badger: {sync_writes: true}\nbadger: {sync_writes: false}\n"}, `sett.yaml:2: setting "badger.sync_writes" is there twice`},
		{"badger no mapping", input{yaml: "badger: 1"}, `sett.yaml:1: want a mapping of settings…`},
		{"list document", input{yaml: "- a\n- b\n"}, `sett.yaml:1: want a mapping of settings…`},
		{"two documents", input{yaml: "id: a\n---\nid: b\n"}, `sett.yaml: want one YAML document, found a second one`},
		{"broken YAML", input{yaml: "id: [a\n"}, `sett.yaml: yaml: line 1: did not find…`},
		{"list for a scalar", input{yaml: "id: [a, b]"}, `sett.yaml:1: setting "id" wants name`},
		{"mapping for a list", input{yaml: "join: {a: 1}"}, `sett.yaml:1: setting "join" wants list of host:port`},
		{"no value", input{yaml: "id: a\nraft-addr:\n"}, `sett.yaml:2: setting "raft-addr" has no value`},
		{"bad value in YAML", input{yaml: "nonvoter: maybe"}, `bad value "maybe" for nonvoter (yaml sett.yaml:1): want true or false`},
		{"bad value overridden", input{yaml: "nonvoter: maybe", args: []string{"--nonvoter"}}, `bad value "maybe" for nonvoter (yaml sett.yaml:1): want true or false`},
		{"unknown variable", input{env: []string{"SETT_RAFT_ADR=x"}}, `unknown setting SETT_RAFT_ADR in the environment; did you mean SETT_RAFT_ADDR?…`},
		{"bad variable", input{env: []string{"SETT_RAFT_ADDR=nowhere"}}, `bad value "nowhere" for raft-addr (env SETT_RAFT_ADDR): want host:port, for example 10.0.0.1:8080`},
		{"bad flag", input{args: []string{"--bootstrap-expect", "three"}}, `bad value "three" for bootstrap-expect (flag --bootstrap-expect): want a whole number from 0 to 99`},
		{"negative", input{args: []string{"--bootstrap-expect=-1"}}, `bad value "-1" for bootstrap-expect…`},
		{"port", input{args: []string{"--http-addr", "1.2.3.4:70000"}}, `bad value "1.2.3.4:70000" for http-addr (flag --http-addr): want host:port…`},
		{"no port", input{args: []string{"--http-addr", "1.2.3.4"}}, `bad value "1.2.3.4" for http-addr…`},
		{"URL", input{args: []string{"--http-addr", "http://1.2.3.4:80"}}, `bad value "http://1.2.3.4:80" for http-addr…`},
		{"wildcard advertised", input{args: []string{"--http-advertise", "0.0.0.0:8080"}}, `bad value "0.0.0.0:8080" for http-advertise (flag --http-advertise): want an address that others can reach, not a wildcard`},
		{"wildcard joined", input{args: []string{"--join", "a:1,:7946"}}, `bad value "a:1,:7946" for join…`},
		{"id", input{args: []string{"--id", "a/b"}}, `bad value "a/b" for id (flag --id): want 1 to 128 letters, digits, dots, dashes or underscores`},
		{"long id", input{args: []string{"--id", strings.Repeat("a", 129)}}, `bad value…`},
		{"data-dir", input{args: []string{"--data-dir", ""}}, `bad value "" for data-dir (flag --data-dir): want a path, got nothing`},
		{"size", input{args: []string{"--max-key-bytes", "4 bytes"}}, `bad value "4 bytes" for max-key-bytes (flag --max-key-bytes): want a size such as 1048576, 8MiB or 64MB`},
		{"size range", input{args: []string{"--max-value-bytes", "1GiB"}}, `bad value "1GiB" for max-value-bytes (flag --max-value-bytes): want a size from 1 to 32MiB`},
		{"size overflow", input{args: []string{"--max-value-bytes", "99999999999TiB"}}, `bad value "99999999999TiB" for max-value-bytes…`},
		{"small memtable", input{yaml: "badger: {mem_table_size: 4MiB}"}, `bad value "4MiB" for badger.mem_table_size (yaml sett.yaml:1): want a size from 8MiB to 1GiB`},
		{"duration", input{args: []string{"--replace-after", "soon"}}, `bad value "soon" for replace-after (flag --replace-after): want a duration such as 30s or 1h30m, or a number of seconds`},
		{"negative duration", input{args: []string{"--history-retention", "-1h"}}, `bad value "-1h" for history-retention (flag --history-retention): want a duration that is not negative`},
		{"duration range", input{args: []string{"--replace-after", "0"}}, `bad value "0" for replace-after (flag --replace-after): want a duration from 1s to 24h`},
		{"fraction", input{args: []string{"--badger-value-log-gc-discard-ratio", "1.5"}}, `bad value "1.5" for badger.value_log_gc_discard_ratio…`},
		{"log level", input{args: []string{"--log-level", "loud"}}, `bad value "loud" for log-level (flag --log-level): want one of debug, info, warn, error`},
		{"log format", input{args: []string{"--log-format", "xml"}}, `bad value "xml" for log-format (flag --log-format): want one of auto, text, json`},
		{"key", input{args: []string{"--gossip-key", "c2VjcmV0"}}, `bad value for gossip-key (flag --gossip-key): want base64 of 16, 24 or 32 bytes…`},
		{"memory mode", input{yaml: "badger: {memory_mode: true}"}, `bad value "true" for badger.memory_mode (yaml sett.yaml:1): memory mode is not supported in this version…`},
		{"encryption", input{env: []string{"SETT_BADGER_ENCRYPTION_KEY_FILE=/k"}}, `bad value "/k" for badger.encryption_key_file (env SETT_BADGER_ENCRYPTION_KEY_FILE): encryption at rest is not supported in this version…`},
		{"stall", input{args: []string{"--badger-num-level0-tables", "8"}}, `badger.num_level0_tables_stall (default) must be more than badger.num_level0_tables (8)`},
		{"compression", input{args: []string{"--badger-compression", "zstd"}}, `badger.compression (flag --badger-compression) needs badger.block_cache_size, for example 32MiB`},
		{"tiny cache", input{args: []string{"--badger-index-cache-size", "10"}}, `badger.index_cache_size (flag --badger-index-cache-size) must be 0 or at least 1MiB`},
		{"lone nonvoter", input{args: []string{"--nonvoter", "--bootstrap-expect=1"}}, `nonvoter (flag --nonvoter) cannot go with bootstrap-expect 1…`},
		{"no file", input{args: []string{"--config", "/nonexistent/sett.yaml"}}, `read the configuration file: open /nonexistent/sett.yaml: no such file or directory`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, dir, err := load(t, tt.in)
			if err == nil {
				t.Fatalf("accepted, want %s", tt.want)
			}
			got := strings.ReplaceAll(err.Error(), dir, "")
			part, isPart := strings.CutSuffix(tt.want, "…")
			if isPart && !strings.HasPrefix(got, part) || !isPart && got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if strings.Contains(got, "\n") {
				t.Errorf("more than one line: %q", got)
			}
			if strings.Contains(got, "c2VjcmV0") {
				t.Error("the message shows a secret")
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	l := mustLoad(t, input{args: []string{"--badger-value-threshold=32", "--max-inflight-bytes=1MiB", "--max-request-bytes=2MiB"}})
	if l.Config.Badger.ValueThreshold != config.MinValueThreshold {
		t.Errorf("value threshold %d is not safe", l.Config.Badger.ValueThreshold)
	}
	if l.Config.MaxInflightBytes != 1<<20 || len(l.Warnings) != 3 {
		t.Errorf("warnings %q", l.Warnings)
	}
}

func TestPrint(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	l := mustLoad(t, input{args: []string{"--id", "n1", "--gossip-key", key}, env: []string{"SETT_JOIN=a:1,b:2"}, yaml: "max-value-bytes: 4MiB\nbadger: {value_threshold: 16}\n"})
	var b strings.Builder
	if err := l.Print(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	if strings.Contains(out, key) {
		t.Error("the gossip key is shown")
	}
	var rows []string
	for line := range strings.Lines(out) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{
		"id n1 flag --id",
		"gossip-key (redacted) flag --gossip-key",
		"join a:1,b:2 env SETT_JOIN",
		"raft-addr 127.0.0.1:7000 default",
		"history-retention 1h default",
		"badger.mem_table_size 8388608 (8MiB) default",
	} {
		if !slices.Contains(rows, want) {
			t.Errorf("no row %q in\n%s", want, out)
		}
	}
	if !strings.Contains(out, "sett.yaml:1") || !strings.Contains(out, "sett.yaml:2, raised from 16") {
		t.Errorf("sources of the file are missing in\n%s", out)
	}
}

func TestEmptyFile(t *testing.T) {
	for _, text := range []string{"\n", "# nothing\n", "badger:\n", "join:\n"} {
		mustLoad(t, input{yaml: text})
	}
}

// The names are a promise to users: a rename is a breaking change.
func TestNames(t *testing.T) {
	want := strings.Fields(`config
		id data-dir http-addr http-advertise raft-addr raft-advertise gossip-addr gossip-advertise bootstrap-expect join nonvoter
		cluster-name gossip-key snapshot-interval snapshot-threshold snapshot-threshold-bytes trailing-logs max-key-bytes
		max-value-bytes max-request-bytes history-retention history-retention-bytes max-inflight-bytes replace-after log-level log-format
		badger-sync-writes badger-memory-mode badger-mem-table-size badger-num-mem-tables badger-value-log-file-size
		badger-value-log-max-entries badger-value-threshold badger-num-level0-tables badger-num-level0-tables-stall badger-compression
		badger-block-cache-size badger-index-cache-size badger-encryption-key-file badger-value-log-gc-enabled
		badger-value-log-gc-discard-ratio badger-value-log-gc-interval-in-seconds`)
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	config.AddFlags(fs)
	var got []string
	fs.VisitAll(func(f *pflag.Flag) { got = append(got, f.Name) })
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("flags %q\nwant %q", got, want)
	}
}

func TestSizesAndDurationsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, 1<<40).Draw(t, "n")
		unit := rapid.SampledFrom([]struct {
			suffix string
			bytes  uint64
		}{{"", 1}, {"B", 1}, {"KiB", 1 << 10}, {"kb", 1000}, {"Mi", 1 << 20}, {" MB", 1e6}}).Draw(t, "unit")
		got, err := config.ParseSize(strconv.FormatUint(n, 10) + unit.suffix)
		if err != nil || got != n*unit.bytes {
			t.Fatalf("%d%s: %d, %v", n, unit.suffix, got, err)
		}
		d := time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(t, "d"))
		if back, err := config.ParseDuration(d.String()); err != nil || back != d {
			t.Fatalf("%s: %s, %v", d, back, err)
		}
	})
}

func TestManual(t *testing.T) {
	page := filepath.Join("..", "docs", "configuration.md")
	want := config.Manual()
	if *update {
		if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/configuration.md is stale: run go test ./config -run TestManual -update")
	}
}
