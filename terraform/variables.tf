variable "name" {
  description = "Prefix of everything that is made; unique in the account and region."
  type        = string
  default     = "health-predict"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "name: 3 to 24 lower-case letters, digits and hyphens, beginning with a letter, since it becomes part of bucket names."
  }
}

variable "region" {
  description = "AWS region, such as eu-west-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: expected one such as eu-west-1."
  }
}

variable "tags" {
  description = "Tags of every resource, on top of project, name and managed_by."
  type        = map(string)
  default     = {}
}

variable "cidr" {
  description = "Addresses of the VPC; a /16 to /24 out of the private ranges."
  type        = string
  default     = "10.42.0.0/20"

  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 24, false) && can(regex("^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.)", var.cidr))
    error_message = "cidr: a private range between /16 and /24, such as 10.42.0.0/20."
  }
}

variable "nat" {
  description = "Put the machine into a private subnet behind a NAT gateway (about $35 a month). Otherwise it has a public address; nothing can connect to it either way."
  type        = bool
  default     = true
}

variable "inbound_cidrs" {
  description = "Who may reach the API on the machine, such as the hospital's VPN; empty: nobody, SSM port forwarding is the way in."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for o in var.inbound_cidrs : can(cidrnetmask(o)) && try(tonumber(split("/", o)[1]) >= 8, false)])
    error_message = "inbound_cidrs: IPv4 ranges of /8 and narrower, such as 10.0.0.0/8; the whole Internet is refused: put a load balancer with TLS in front for that."
  }
}

variable "api_port" {
  description = "Port of the machine on which the API answers, whether a service of its own or a pod."
  type        = number
  default     = 8000

  validation {
    condition     = var.api_port >= 1024 && var.api_port <= 65535
    error_message = "api_port: a number from 1024 to 65535."
  }
}

variable "node_port" {
  description = "NodePort of the API's Service in Minikube, which api_port passes on to."
  type        = number
  default     = 30080

  validation {
    condition     = var.node_port >= 30000 && var.node_port <= 32767
    error_message = "node_port: a number from 30000 to 32767."
  }
}

variable "instance_type" {
  description = "The machine. With Minikube at least 2 cores and 8 GiB; x86-64."
  type        = string
  default     = "m7i.large"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9]+$", var.instance_type)) && !can(regex("^[a-z]+[0-9]+g[a-z]*\\.", var.instance_type))
    error_message = "instance_type: an x86-64 type such as m7i.large; Graviton types (m7g, t4g) are not: the lock file's wheels and Minikube here are x86-64."
  }
}

variable "ami" {
  description = "AMI id of a Debian 12 image; null: the newest of Debian's own."
  type        = string
  default     = null

  validation {
    condition     = var.ami == null || can(regex("^ami-[0-9a-f]{8,17}$", var.ami))
    error_message = "ami: expected one such as ami-0123456789abcdef0, or null."
  }
}

variable "root_gb" {
  description = "Size of the root disk in GB: system, environment, container images."
  type        = number
  default     = 40

  validation {
    condition     = var.root_gb >= 20 && var.root_gb <= 1000
    error_message = "root_gb: 20 to 1000."
  }
}

variable "data_gb" {
  description = "Size of the data disk in GB: the storage tree that runs work on, MLflow's database in it. It outlives the machine."
  type        = number
  default     = 50

  validation {
    condition     = var.data_gb >= 10 && var.data_gb <= 16000
    error_message = "data_gb: 10 to 16000."
  }
}

variable "release" {
  description = "What is installed: the source archive (.tar.gz) of a release, at an s3:// or https:// address, and its SHA-256."
  type        = object({ url = string, sha256 = string })

  validation {
    condition     = can(regex("^(s3|https)://[^ '\"$`\\\\]+\\.tar\\.gz$", var.release.url)) && can(regex("^[0-9a-f]{64}$", var.release.sha256))
    error_message = "release: url = s3://… or https://… ending in .tar.gz, and sha256 = 64 hex digits (`sha256sum FILE`)."
  }
}

variable "minikube" {
  description = "Minikube's version and the SHA-256 of its linux-amd64 binary, as on its release page; null: no cluster, the API runs as a service on the machine."
  type        = object({ version = string, sha256 = string })
  default = {
    version = "1.38.1"
    sha256  = "099477eaf248bcb5bcea8ce78a2898e93ac01461c35189da1848c3de82ecd22e"
  }

  validation {
    condition     = var.minikube == null ? true : can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.minikube.version)) && can(regex("^[0-9a-f]{64}$", var.minikube.sha256))
    error_message = "minikube: version such as 1.38.1 and sha256 = 64 hex digits, or null."
  }
}

variable "agents" {
  description = "AWS's own packages for Debian: the SSM agent (the way in) and the CloudWatch agent (logs). A version, or latest; sha256 of the .deb, or null to rely on TLS to AWS's bucket of the region."
  type = object({
    ssm        = optional(object({ version = optional(string, "latest"), sha256 = optional(string) }), {})
    cloudwatch = optional(object({ version = optional(string, "latest"), sha256 = optional(string) }), {})
  })
  default = {}

  validation {
    condition     = alltrue([for o in [var.agents.ssm, var.agents.cloudwatch] : can(regex("^(latest|[0-9]+(\\.[0-9]+)+)$", o.version)) && (o.sha256 == null || can(regex("^[0-9a-f]{64}$", o.sha256)))])
    error_message = "agents: version = latest or such as 3.3.3050.0; sha256 = 64 hex digits or null."
  }
}

variable "schedule" {
  description = "When runs begin: minute, hour, day of month, month, weekday, as in a crontab; UTC."
  type        = string
  default     = "0 5 * * *"

  validation {
    condition     = can(regex("^([0-9*/,-]+ ){4}[0-9*/,-]+$", var.schedule))
    error_message = "schedule: five fields such as `0 5 * * *`."
  }
}

variable "mlflow" {
  description = "Run MLflow's page as a service on the machine (on 127.0.0.1; reach it by SSM port forwarding)."
  type        = bool
  default     = true
}

variable "settings" {
  description = "Settings of health-predict by their environment names, such as HEALTH_PREDICT_SEARCH__ENABLED. No secrets: these go to SSM Parameter Store under /<name>/."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for k, v in var.settings : can(regex("^(HEALTH_PREDICT_[A-Z0-9_]+|MLFLOW_TRACKING_URI)$", k)) && !can(regex("[\\n\\r'\\\\]", v))])
    error_message = "settings: names such as HEALTH_PREDICT_SEARCH__ENABLED, values of one line without quotes or backslashes."
  }
  validation {
    condition     = alltrue([for k in keys(var.settings) : !can(regex("PASSWORD|SECRET|TOKEN|WEBHOOK|__KEYS?$", k))])
    error_message = "settings: passwords, keys and webhooks don't belong into user-data; write them with `aws ssm put-parameter --type SecureString --name /<name>/HEALTH_PREDICT_…`."
  }
}

variable "alarm_email" {
  description = "Who is told when the machine fails or falls silent; empty: nobody, the alarms are in CloudWatch."
  type        = string
  default     = ""

  validation {
    condition     = var.alarm_email == "" || can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", var.alarm_email))
    error_message = "alarm_email: an e-mail address, or empty."
  }
}

variable "silent_days" {
  description = "Days without any log entry after which the alarm `silence` is raised; more than a daily schedule's 1."
  type        = number
  default     = 2

  validation {
    condition     = var.silent_days >= 1 && var.silent_days <= 7
    error_message = "silent_days: 1 to 7."
  }
}

variable "retention" {
  description = "Days: log entries in CloudWatch, former versions of S3 objects, and when runs move to infrequent access."
  type        = object({ logs = optional(number, 365), versions = optional(number, 90), runs = optional(number, 90) })
  default     = {}

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.retention.logs) && var.retention.versions >= 1 && var.retention.runs >= 30
    error_message = "retention: logs one of CloudWatch's (…, 90, 180, 365, 400, 731, …), versions at least 1, runs at least 30."
  }
}

variable "protect" {
  description = "Guard against loss: no termination of the machine, no removal of buckets and repositories that hold something."
  type        = bool
  default     = true
}
