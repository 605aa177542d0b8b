# Each variable refuses what can't be right, before anything is made.

mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-west-1a"] }
  }
}

variables {
  region  = "eu-west-1"
  release = { url = "s3://releases/health-predict-1.0.0.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}

run "what_cannot_be" {
  command = plan
  variables {
    name          = "Health_Predict"
    region        = "europe"
    cidr          = "8.8.8.0/24"
    inbound_cidrs = ["0.0.0.0/0"]
    api_port      = 80
    node_port     = 8000
    instance_type = "t4g.large"
    ami           = "debian"
    root_gb       = 8
    data_gb       = 1
    release       = { url = "http://example.org/a.tar.gz", sha256 = "0" }
    minikube      = { version = "latest", sha256 = "0" }
    agents        = { ssm = { version = "newest" } }
    schedule      = "daily"
    settings      = { PATH = "/tmp" }
    alarm_email   = "nobody"
    silent_days   = 30
    retention     = { logs = 12 }
  }
  expect_failures = [var.name, var.region, var.cidr, var.inbound_cidrs, var.api_port, var.node_port, var.instance_type, var.ami, var.root_gb, var.data_gb, var.release, var.minikube, var.agents, var.schedule, var.settings, var.alarm_email, var.silent_days, var.retention]
}

run "what_would_be_unsafe" {
  command = plan
  variables {
    inbound_cidrs = ["hospital"]
    settings      = { HEALTH_PREDICT_ALERT__EMAIL_PASSWORD = "hunter2" }
    release       = { url = "s3://releases/a.tar.gz", sha256 = "latest" }
    cidr          = "10.0.0.0/8"
  }
  expect_failures = [var.inbound_cidrs, var.settings, var.release, var.cidr]
}

run "what_would_break_user_data" {
  command = plan
  variables {
    settings = { HEALTH_PREDICT_DATA = "a'b" }
  }
  expect_failures = [var.settings]
}
