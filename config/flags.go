package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// fileFlag names the YAML file; it is where settings come from, not a setting.
const (
	fileFlag = "config"
	fileEnv  = "SETT_CONFIG"
)

// AddFlags registers a flag for every setting, and --config, with fs. The flags only
// remember what was given: Load parses it, so that a bad value reads the same
// whatever its source.
func AddFlags(fs *pflag.FlagSet) {
	fs.String(fileFlag, "", "YAML `file` of settings (environment: "+fileEnv+")")
	for _, s := range table() {
		v := &flagValue{kind: s.binding.kind, list: s.binding.list, text: s.def}
		if s.defDoc != "" {
			v.text = ""
		}
		usage := s.help
		if s.defDoc != "" {
			usage += " (default " + s.defDoc + ")"
		}
		f := fs.VarPF(v, s.flag(), "", usage)
		if s.binding.kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// flagValue implements pflag.Value for any setting.
type flagValue struct {
	kind string
	list bool
	text string
	raw  []string
}

func (v *flagValue) String() string { return v.text }
func (v *flagValue) Type() string   { return v.kind }

// Set remembers a text: a list gathers them, anything else keeps the last.
func (v *flagValue) Set(text string) error {
	if !v.list {
		v.raw = v.raw[:0]
	}
	v.raw = append(v.raw, text)
	v.text = strings.Join(v.raw, ",")
	return nil
}

// fromFlags returns what the command line gave for s, if anything.
func fromFlags(fs *pflag.FlagSet, s *setting) (given, bool) {
	if fs == nil {
		return given{}, false
	}
	f := fs.Lookup(s.flag())
	if f == nil || !f.Changed {
		return given{}, false
	}
	v, ok := f.Value.(*flagValue)
	if !ok {
		return given{}, false
	}
	return given{texts: v.raw, source: "flag --" + s.flag()}, true
}
