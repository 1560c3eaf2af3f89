package config

import (
	"fmt"
	"strings"
)

// Manual returns docs/configuration.md, made from the table.
func Manual() string {
	var b strings.Builder
	b.WriteString(manualHead)
	b.WriteString("\n## The node\n\n")
	writeTable(&b, nodeSettings())
	b.WriteString(manualAfterNode)
	b.WriteString("\n## The storage engine: `badger.*`\n\n")
	writeTable(&b, badgerSettings())
	b.WriteString(manualTail)
	return b.String()
}

func writeTable(b *strings.Builder, rows []setting) {
	b.WriteString("| setting | kind | default | meaning |\n|---|---|---|---|\n")
	for _, s := range rows {
		def := "`" + s.def + "`"
		if s.defDoc != "" {
			def = s.defDoc
		}
		help := s.help
		if s.cluster {
			help += " (cluster setting)"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", s.name, strings.ReplaceAll(s.binding.kind, "|", ", "), def, help)
	}
}

const manualHead = `# Configuration

<!-- Made from the table in the package config: go test ./config -run TestManual -update -->

Every setting of ` + "`sett serve`" + ` has one name in three places. The first that is there wins:

1. the flag: ` + "`--raft-addr 10.0.0.1:7000`" + `
2. the environment: ` + "`SETT_RAFT_ADDR=10.0.0.1:7000`" + ` (an empty variable counts as not set)
3. the YAML file of ` + "`--config FILE`" + ` (or ` + "`SETT_CONFIG`" + `): ` + "`raft-addr: 10.0.0.1:7000`" + `
4. the default

` + "`sett serve --print-config`" + ` takes the same flags and shows each value and where it came from, without
starting anything.

Lists are comma separated; a flag may be repeated, and in YAML a list is a list too. A higher place replaces
a list, it does not add to it. Sizes are bytes (` + "`1048576`" + `), or have a unit: ` + "`8MiB`" + ` and ` + "`8Mi`" + ` are powers of
1024, ` + "`64MB`" + ` of 1000. Durations are written as in Go (` + "`90s`, `1h30m`" + `) or as a number of seconds.

The nested settings of Badger are nested in YAML, and joined by a dash or an underscore elsewhere:
` + "`badger: {value_threshold: 1MiB}`, `--badger-value-threshold 1MiB`, `SETT_BADGER_VALUE_THRESHOLD=1MiB`" + `.

An unknown key in the file, an unknown ` + "`SETT_…`" + ` variable and a bad value are errors that name the setting and
its source, also when a higher place overrides them. The node ignores the variables of the client commands
(` + "`SETT_ENDPOINTS`, `SETT_OUTPUT`, `SETT_TIMEOUT`, `SETT_TOKEN`, `SETT_CACERT`, `SETT_CERT`, `SETT_KEY`" + `), those that
Kubernetes sets for a service named sett (` + "`SETT_PORT…`, `SETT_SERVICE_…`" + `) and those of ` + "`sett watch --exec`" + ` (` + "`SETT_EVENT_…`" + `).
`

const manualAfterNode = `
**Advertised addresses.** What a node tells others is the address it listens on. Where that is a wildcard
(` + "`0.0.0.0`, `[::]` or `:8080`" + `) it is the machine's first address that is neither loopback nor link-local, IPv4
before IPv6, or else the host name. Where others must use another address (port mapping, several networks),
set the three ` + "`…-advertise`" + ` settings. A node may come back on other addresses: it is found again.

**Cluster settings** change what a client can observe, so they are kept in the replicated state: the first
configuration seeds them when the cluster is formed, afterwards ` + "`PUT /v1/cluster/settings`" + ` changes them. A node
whose own value differs warns and goes by the cluster's.

**Forming or joining.** With ` + "`bootstrap-expect`" + ` a node without data waits until so many servers see each other,
then they form a cluster, once. With only ` + "`join`" + ` it is taken in by the cluster it finds. With neither it waits for
` + "`sett join`" + `. The same start line is right for the first and for every later start.
`

const manualTail = `
Names are those of Badger. The defaults fit a container of 512 MiB, together with ` + "`GOMEMLIMIT=200MiB`" + ` in the
environment, which the image sets: the engine keeps about as much again outside the Go heap. With 2 GiB and more
for the node, a ` + "`GOMEMLIMIT`" + ` of about 60 % of it and
` + "`mem_table_size: 32MiB`, `num_mem_tables: 3` and `value_log_file_size: 128MiB`" + ` make writing a little faster.

What a Badger user may miss here: values never leave the LSM tree, because collecting a value log moves data
and can lose it in a power cut; big values are stored in pieces instead, so ` + "`value_threshold`" + ` only has a
lower bound. The Raft log has a database of its own, always synced, whose tuning is not a setting.

## Example

` + "```yaml" + `
id: node-1
data-dir: /var/lib/sett
http-addr: 0.0.0.0:8080
raft-addr: 0.0.0.0:7000
gossip-addr: 0.0.0.0:7946
bootstrap-expect: 3
join:
  - node-1:7946
  - node-2:7946
  - node-3:7946
badger:
  mem_table_size: 16MiB
` + "```" + `
`
